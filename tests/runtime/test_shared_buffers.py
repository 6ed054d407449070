"""Buffers that a model carries on: data ranks go on from those of the first."""

import pytest

from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.runtime.carried_buffers import buffers_of_samples, carried_buffers
from tests.runtime.expect import assert_statistics_equal
from tests.runtime.world import MODELS, Case, check, run_cases

PLANS = {
    "zero0": {"data": 2},
    "zero3-recompute": {"data": 2, "zero": 3, "recompute": "full"},
    "pipeline": {"pipeline": 2, "data": 2, "zero": 1},
}


def case(name, body="shared_buffers", **extra):
    return Case(name, body, model="running_mean", options=PLANS[name.removeprefix("driven-")], extra=extra)


TWO = [case("zero0"), case("zero3-recompute"), case("driven-zero0", driven=True)]
ALONE = [
    Case(
        f"verify-{name}",
        "verify",
        model="running_mean",
        options={"pipeline": 2, "num_micro_batches": 4, "cuts": [1], **options},
    )
    for name, options in {"pipeline": {}, "recompute": {"recompute": "full"}}.items()
]
FOUR = [case("pipeline")]


@pytest.fixture(scope="module")
def found():
    return {name: check(results, 2) for name, results in run_cases(2, [*TWO, *ALONE]).items()} | {
        name: check(results, 4) for name, results in run_cases(4, FOUR).items()
    }


@pytest.mark.parametrize("name", [x.name for x in (*TWO, *FOUR)])
def test_data_ranks_hold_the_first_ones_buffers(found, name):
    assert {"layers.0.mean", "layers.1.seen"} <= {buffer for _, held in found[name] for buffer in held}
    for rank, (apart, _) in enumerate(found[name]):
        # BatchNorm's are each data rank's own.
        is_first = rank in (0, 2) if len(found[name]) == 4 else rank == 0
        assert all(buffer.startswith("norm.running") for buffer in apart)
        assert not (is_first and apart)


@pytest.mark.parametrize("name", ["pipeline", "recompute"])
def test_backward_passes_find_the_buffers_of_their_own_micro_batch(found, name):
    assert_statistics_equal(found[f"verify-{name}"], 2)


def graph(name):
    return capture(load_target(str(MODELS / f"{name}.py"))).at(2)


def test_buffers_are_told_apart_by_what_is_written_to_them():
    blocks = graph("running_mean").blocks
    by_samples = {f"layers.{i}.{name}" for i in range(2) for name in ("mean", "seen")}
    assert buffers_of_samples(blocks) == by_samples
    assert carried_buffers(blocks) == by_samples | {f"layers.{i}.direction" for i in range(2)}


@pytest.mark.parametrize("name", ["perception", "tied_gpt"])
def test_statistics_of_batch_norm_and_tables_are_not_carried_on(name):
    blocks = graph(name).blocks
    assert not buffers_of_samples(blocks) and not carried_buffers(blocks)
