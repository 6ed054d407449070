"""No pin leads to a better plan than the free search proved possible, where placements matter.

Where the free plan is proved optimal its bound is its own step time: then no pin may beat the plan itself.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.target import load_target
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.pins import parse_sets
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest, PlanResult

CLUSTER = cluster_of(load_device("a100-sxm-80gb"), 4)
GPT = {"n_layer": 4, "n_embd": 4096, "n_head": 32, "seq": 2048, "vocab": 50304}
MODELS = {
    "gpt": ("examples/gpt.py", GPT, 64),
    "perception": ("examples/perception.py", {}, 64),
    "recommender": ("examples/recommender.py", {}, 1024),
}
MESHES = {
    "tensor": ("mesh.tensor=2", "mesh.pipeline=1", "batch.micro=8"),
    "pipeline": ("mesh.tensor=2", "mesh.pipeline=2", "batch.micro=4", "pipeline.schedule=1f1b"),
}
PINS = [
    ("gpt", "activations.blocks.*=sequence"),
    ("gpt", "activations.blocks.0=batch"),
    ("gpt", "activations.*=replicate"),
    ("gpt", "tensor.wte=vocab"),
    ("gpt", "tensor.blocks.*.mlp.fc=column"),
    ("gpt", "tensor.blocks.*.attn.qkv=replicate"),
    ("gpt", "tensor.*=replicate"),
    ("gpt", "recompute=selective"),
    ("gpt", "recompute.blocks.1=full"),
    ("perception", "activations.*=batch"),
    ("perception", "tensor.planner.0=column"),
    ("perception", "recompute=selective"),
    ("recommender", "activations.*=replicate"),
    ("recommender", "tensor.user=vocab"),
    ("recommender", "tensor.item=column"),
]


@cache
def captured(model: str) -> Capture:
    target, args, _ = MODELS[model]
    return capture(load_target(target, args), torch.bfloat16)


@cache
def planned(model: str, *sets: str) -> PlanResult:
    source = captured(model)
    request = PlanRequest(
        source.source, CLUSTER, global_batch=MODELS[model][2], constraints=parse_sets(sets), top=1
    )
    return make_plan(request, captured=source)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("model", "pin"), PINS)
def test_no_pin_beats_the_free_plan(model: str, pin: str, mesh: str) -> None:
    free, pinned = planned(model, *MESHES[mesh]), planned(model, *MESHES[mesh], pin)
    assert free.status != "optimal" or free.bound_s == pytest.approx(free.prediction.step_time_s)
    assert pinned.prediction.step_time_s >= free.bound_s * (1 - 1e-9)
    assert pinned.prediction.step_time_s >= free.prediction.step_time_s * (1 - 2e-3)
