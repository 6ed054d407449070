"""No pin leads to a better plan than the free search proved possible, where placements matter.

Where the free plan is proved optimal its bound is its own step time: then no pin may beat the plan itself.
"""

from __future__ import annotations

import pytest

from tests.planner.subject import Subject, planned

GPT = {"n_layer": 4, "n_embd": 4096, "n_head": 32, "seq": 2048, "vocab": 50304}
MODELS = {
    "gpt": Subject("examples/gpt.py", GPT, 64),
    "perception": Subject("examples/perception.py", {}, 64),
    "recommender": Subject("examples/recommender.py", {}, 1024),
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


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("model", "pin"), PINS)
def test_no_pin_beats_the_free_plan(model: str, pin: str, mesh: str) -> None:
    free, pinned = (planned(MODELS[model], *MESHES[mesh], *pins) for pins in ((), (pin,)))
    assert free.status != "optimal" or free.bound_s == pytest.approx(free.prediction.step_time_s)
    assert pinned.prediction.step_time_s >= free.bound_s * (1 - 1e-9)
    assert pinned.prediction.step_time_s >= free.prediction.step_time_s * (1 - 1e-9)
