"""Nodes whose links are so slow that they decide: the free plan is no worse than what pins lead to."""

import pytest

from tests.planner.hunt_pins import Quarry, planned

# Gradients over the network take longer here than computing everything twice.
SLOW = Quarry(
    "examples/gpt.py",
    {"n_layer": 8, "n_embd": 512, "n_head": 8, "seq": 128, "vocab": 8192},
    2,
    4,
    16,
    device="rtx4090-24gb",
)


@pytest.mark.parametrize(
    "sets",
    [
        ("mesh.tensor=2", "mesh.pipeline=4", "mesh.order=[data, tensor, pipeline]"),
        ("mesh.data=1", "mesh.pipeline=4"),
    ],
)
def test_what_spares_the_network_is_found_without_pins(sets: tuple[str, ...]) -> None:
    free, pinned = planned(SLOW), planned(SLOW, *sets)
    assert free.prediction.step_time_s <= pinned.prediction.step_time_s * (1 + 1e-9)
