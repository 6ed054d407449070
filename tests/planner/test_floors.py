"""Lower bounds of a chain's time against the tables that they stand for."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.decisions import Plan, Precision
from autopar.planner.model_choices import ModelChoices

MODELS = {
    "examples/gpt.py": {"n_layer": 2, "n_embd": 256, "n_head": 8, "seq": 64, "vocab": 1024},
    "examples/perception.py": {"width": 8, "hidden": 32, "num_frames": 4, "image_size": 16},
    "examples/recommender.py": {"num_users": 512, "num_items": 256, "dim": 32},
}


@cache
def choices(target: str) -> ModelChoices:
    captured = capture(load_target(target, MODELS[target]), torch.bfloat16)
    cluster = cluster_of(load_device("a100-sxm-80gb"), 8)
    return ModelChoices(captured, cluster, Precision.BF16, Plan(global_batch=32))


@pytest.mark.parametrize("micro_batch", [2, 8, 32])
@pytest.mark.parametrize("tensor", [1, 2, 8])
@pytest.mark.parametrize("target", MODELS)
def test_no_choice_is_quicker_than_the_floor(target: str, tensor: int, micro_batch: int) -> None:
    made = choices(target)
    floor_s = made.floor_s(tensor, micro_batch)
    assert floor_s > 0
    for table in made.tables(tensor, micro_batch):
        quickest = [min(choice.forward_s + choice.backward_s for choice in kind) for kind in table.kinds]
        chain_s = sum(quickest[kind] for kind in table.blocks)
        assert floor_s <= chain_s * (1 + 1e-9)
