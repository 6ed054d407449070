"""Tables of larger micro-batches bound those of smaller ones, as the search takes for granted."""

import itertools

import pytest
import torch

from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.plan.decisions import Plan, Precision
from autopar.planner.model_choices import ModelChoices
from autopar.solve.floors import has_options_of
from autopar.solve.table_floor import TableFloor

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 48)
MODELS = {
    "examples/gpt.py": {"n_layer": 2, "n_embd": 256, "n_head": 8, "seq": 128, "vocab": 1024},
    "examples/resnet.py": {},
    "examples/recommender.py": {},
}


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("target", MODELS)
def test_no_chain_is_quicker_a_sample_on_fewer_samples(target: str, tensor: int) -> None:
    captured = capture(load_target(target, MODELS[target]), torch.bfloat16)
    cluster = make_cluster(load_device("a100-sxm-80gb"), 1, 4)
    choices = ModelChoices(captured, cluster, Precision.BF16, Plan())
    floors = {size: TableFloor(choices.tables(tensor, size)) for size in SIZES}
    compared = 0
    for size, other in itertools.combinations(SIZES, 2):
        if has_options_of(size, other, tensor):
            compared += 1
            assert floors[other].chain_s / other <= floors[size].chain_s / size * (1 + 1e-9), (size, other)
    assert compared > len(SIZES)
