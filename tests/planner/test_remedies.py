"""What would make a plan fit is tried for real: with each remedy planning succeeds, beyond it it does not."""

from collections.abc import Callable

import pytest
import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.target import load_target
from autopar.errors import InfeasibleError
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.pins import parse_sets
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest, PlanResult

ARGS = {"n_layer": 4, "n_embd": 512, "n_head": 8, "seq": 512, "vocab": 2048}
DEVICE = load_device("a100-sxm-80gb")
MESH = ("mesh.tensor=1", "mesh.pipeline=1")
Planner = Callable[..., PlanResult]


@pytest.fixture(scope="module")
def planner() -> Planner:
    captured: Capture = capture(load_target("examples/gpt.py", ARGS), torch.bfloat16)

    def plan(*sets: str, room_bytes: int, batch: int = 64, devices: int = 4) -> PlanResult:
        request = PlanRequest(
            captured.source,
            cluster_of(DEVICE, devices, min(devices, 4)),
            batch,
            memory_limit_bytes=DEVICE.framework_reserved_bytes + room_bytes,
            constraints=parse_sets(sets),
            top=1,
            with_baselines=False,
        )
        return make_plan(request, captured=captured)

    return plan


@pytest.mark.parametrize(
    ("sets", "freed", "room_bytes"),
    [
        ((*MESH, "zero=0", "offload=none"), "zero", 200_000_000),
        ((*MESH, "zero=0", "offload=none"), "offload", 200_000_000),
        ((*MESH, "recompute=none", "offload=none", "batch.micro=16"), "recompute", 500_000_000),
        (("mesh.tensor=1", "mesh.data=4", "zero=0", "offload=none"), "mesh.data", 200_000_000),
        (
            ("mesh.pipeline=4", "pipeline.schedule=gpipe", "recompute=none", "offload=none"),
            "pipeline.schedule",
            300_000_000,
        ),
        (("mesh.tensor=4", "tensor.*=replicate", "zero=0", "offload=none"), "tensor", 150_000_000),
    ],
)
def test_a_pin_that_is_told_to_bind_does(
    sets: tuple[str, ...], freed: str, room_bytes: int, planner: Planner
) -> None:
    with pytest.raises(InfeasibleError, match=f"with {freed} left to the planner") as caught:
        planner(*sets, room_bytes=room_bytes)
    keys = caught.value.remedies["free"]
    assert isinstance(keys, list) and freed in keys
    for key in keys:
        rest = [pin for pin in sets if not pin.startswith(key)]
        assert planner(*rest, room_bytes=room_bytes).prediction.fits


def test_a_smaller_micro_batch_is_the_largest_that_fits(planner: Planner) -> None:
    sets = (*MESH, "recompute=none", "offload=none")
    with pytest.raises(InfeasibleError, match=r"with batch.micro") as caught:
        planner(*sets, "batch.micro=16", room_bytes=500_000_000)
    size = caught.value.remedies["micro_batch"]
    assert isinstance(size, int) and planner(*sets, f"batch.micro={size}", room_bytes=500_000_000)
    with pytest.raises(InfeasibleError):
        planner(*sets, f"batch.micro={2 * size}", room_bytes=500_000_000)


def test_the_memory_that_is_told_is_the_least_of_all_ways_of_offloading(planner: Planner) -> None:
    sets = (*MESH, "zero=0")
    with pytest.raises(InfeasibleError, match=r"it would fit on devices with") as caught:
        planner(*sets, room_bytes=20_000_000, batch=16)
    enough_bytes = caught.value.remedies["memory_per_device_bytes"]
    assert isinstance(enough_bytes, int)
    room_bytes = enough_bytes - DEVICE.framework_reserved_bytes
    assert planner(*sets, room_bytes=room_bytes, batch=16).prediction.fits
    with pytest.raises(InfeasibleError):
        planner(*sets, room_bytes=int(0.97 * room_bytes), batch=16)


@pytest.mark.parametrize(("room_bytes", "nodes"), [(30_000_000, 3), (35_000_000, 2)])
def test_so_many_devices_are_enough_and_a_node_less_is_not(
    room_bytes: int, nodes: int, planner: Planner
) -> None:
    pins, enough = ("zero=0", "recompute=none"), 4 * nodes
    with pytest.raises(InfeasibleError, match=f"on {enough} such devices .{nodes} nodes of 4") as caught:
        planner(*pins, room_bytes=room_bytes, batch=8)
    assert caught.value.remedies["devices"] == enough
    assert planner(*pins, room_bytes=room_bytes, batch=8, devices=enough).prediction.fits
    with pytest.raises(InfeasibleError):
        planner(*pins, room_bytes=room_bytes, batch=8, devices=enough - 4)


def test_the_number_of_devices_that_is_enough_may_be_five_times_a_power_of_two(planner: Planner) -> None:
    with pytest.raises(InfeasibleError, match="on 20 such devices"):
        planner("offload=none", room_bytes=61_000_000, batch=20, devices=1)
    assert planner("offload=none", room_bytes=61_000_000, batch=20, devices=20).prediction.fits


def test_state_that_never_fits_is_told_without_a_search(planner: Planner) -> None:
    told: list[str] = []
    captured = capture(load_target("examples/gpt.py", ARGS | {"n_embd": 8192, "n_layer": 64}), torch.float16)
    request = PlanRequest(captured.source, cluster_of(load_device("t4-16gb"), 4), 64)
    with pytest.raises(InfeasibleError, match=r"it would fit on devices with") as caught:
        make_plan(request, told.append, captured)
    assert not any(line.startswith("mesh ") for line in told)
    assert caught.value.remedies["global_batch"] is None and caught.value.remedies["free"] == []
