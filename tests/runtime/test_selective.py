"""Selective recomputation, with and without tensor parallelism, equal to one process."""

import pytest

from tests.runtime.expect import assert_equal, assert_statistics_equal
from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import ROOT, Case

RESNET = {
    "model": str(ROOT / "examples" / "resnet.py"),
    "args": {"depth": 18, "width": 8, "image_size": 32, "num_classes": 12},
}


def case(name, model="tied_gpt", args=None, **options):
    options = {"recompute": "selective", "num_steps": 1, **options}
    return Case(name, "verify", model=model, args=args or {}, options=options)


TWO = [
    case("gpt-pipeline", pipeline=2, num_micro_batches=3),
    case("gpt-tensor", tensor=2, lines=GPT_TENSOR),
    case("gpt-sequence", tensor=2, lines=GPT_TENSOR, activations="sequence"),
    case("gpt-zero3", data=2, zero=3),
    case("gpt-zero-bubble", pipeline=2, schedule="zero-bubble", num_micro_batches=3),
    case("encoder-decoder", model="encoder_decoder", pipeline=2),
    case("perception", model="perception", pipeline=2),
    case(
        "perception-tensor",
        model="perception",
        tensor=2,
        lines=(("stages.0.conv", "column"), ("stages.1.conv", "row")),
    ),
    case("resnet", **RESNET, pipeline=2),
    case("resnet-zero2", **RESNET, data=2, zero=2),
    case("resnet-tensor", **RESNET, tensor=2, lines=(("head", "column"),)),
]


@pytest.mark.parametrize("name", [x.name for x in TWO])
def test_two_ranks_equal_one_process(two, name):
    assert_equal(two[name], 2)


@pytest.mark.parametrize("name", ["perception", "resnet"])
def test_batchnorm_statistics_advance_once(two, name):
    assert_statistics_equal(two[name], 2)
