"""Blocks are timed whole, and as the planner divides them."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autopar.cli.models_to_time import model_to_time
from autopar.hardware.catalog import load_device
from autopar.plan.decisions import Mesh, Precision
from autopar.units import MiB

GPT = str(Path(__file__).resolve().parents[2] / "examples" / "gpt.py")
ARGS = {"n_layer": 1, "n_embd": 32, "n_head": 2, "seq": 16, "vocab": 64}


@pytest.mark.slow
def test_a_model_comes_with_a_plan_for_each_degree() -> None:
    # Whether it fits in memory has no bearing on how it is divided.
    device = replace(load_device("cpu"), memory_bytes=1 * MiB)
    told: list[str] = []
    found = model_to_time(GPT, ARGS, (4, 2, 4), (2,), device, tell=told.append)
    assert found.micro_batches == (2, 4) and found.precision is None
    assert [plan.mesh for plan in found.sharded] == [Mesh(1, 1, 2)]
    plan = found.sharded[0]
    assert (plan.micro_batch, plan.zero, plan.precision) == (4, 0, Precision.FP32)
    assert told == []


def test_one_process_divides_nothing() -> None:
    assert model_to_time(GPT, ARGS, (2,), (), load_device("cpu")).sharded == ()


def test_without_the_planner_blocks_are_timed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "autopar.planner.planner", None)
    told: list[str] = []
    found = model_to_time(GPT, ARGS, (2,), (2, 4), load_device("cpu"), tell=told.append)
    assert found.sharded == ()
    assert len(told) == 1 and "timed whole only" in told[0]
