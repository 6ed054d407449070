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
# Early convolutions hand over far more than late ones.
SLOW_NODES = Quarry("examples/perception.py", {}, 4, 1, 8, network_bytes_per_s=2e9)


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


@pytest.mark.slow
def test_stages_that_send_little_are_found_without_pins() -> None:
    sets = ("mesh.pipeline=4", "mesh.data=1", "mesh.tensor=1", "zero=2", "pipeline.schedule=zero-bubble")
    free, pinned = planned(SLOW_NODES), planned(SLOW_NODES, *sets)
    assert free.prediction.step_time_s <= pinned.prediction.step_time_s * (1 + 1e-9)


def test_a_plan_that_repeats_its_work_says_which_devices_it_does_not_need() -> None:
    free = planned(SLOW)
    repeats = [note for note in free.notes if "repeat each other's work" in note]
    mesh = free.plan.mesh
    assert mesh.tensor is not None and mesh.tensor > 1
    assert repeats == [
        f"nothing is divided on the tensor axis: its {mesh.tensor} ranks repeat each other's work, and "
        f"{8 // mesh.tensor} of the 8 devices would be as quick"
    ]
