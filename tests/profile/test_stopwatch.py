"""What a stopwatch counts, by clocks that the measured work itself moves on."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from autopar.profile import stopwatch as module
from autopar.profile.stopwatch import Stopwatch, Task


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    """One rank."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Clocks that stand still unless they are moved."""
    found = SimpleNamespace(elapsed_s=0.0, processor_s=0.0)
    time = SimpleNamespace(
        perf_counter=lambda: found.elapsed_s,
        process_time=lambda: found.processor_s,
        monotonic=lambda: found.elapsed_s,
    )
    monkeypatch.setattr(module, "time", time)
    return found


def test_short_calls_pay_for_the_turns_of_other_ranks(clocks: SimpleNamespace) -> None:
    def undisturbed() -> None:  # the other rank of this core has its turn before or after
        clocks.elapsed_s += 0.25
        clocks.processor_s += 0.25

    stopwatch = Stopwatch(torch.device("cpu"), 0.04, 3, lambda text: None, share=2.0)
    found = stopwatch.run_in_order("blocks", [Task("computing", undisturbed)])
    assert found["computing"].median_s == 0.5


def test_other_programs_are_not_counted_but_waiting_for_ranks_is(clocks: SimpleNamespace) -> None:
    def disturbed() -> None:
        clocks.elapsed_s += 4.0
        clocks.processor_s += 0.25

    stopwatch = Stopwatch(torch.device("cpu"), 0.04, 3, lambda text: None, share=1.0)
    tasks = [Task("computing", disturbed), Task("communicating", disturbed, computes=False)]
    found = stopwatch.run("both", tasks)
    assert (found["computing"].median_s, found["communicating"].median_s) == (0.25, 4.0)
