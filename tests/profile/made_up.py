"""A profile as if it had been measured: quick to make, and every number known."""

from autopar.hardware.link import CollectiveKind
from autopar.plan.decisions import Precision
from autopar.profile.block_times import BlockTimes
from autopar.profile.communication import CommunicationResult
from autopar.profile.compute import ComputeResult
from autopar.profile.machine import Machine
from autopar.profile.overheads import OverheadResult, Steps
from autopar.profile.settings import ProfileResult, ProfileSettings
from autopar.profile.spread import Spread, scaled

SIZES = (64, 262144, 4194304)


def spread(seconds: float) -> Spread:
    return Spread(seconds, 0.9 * seconds, 1.2 * seconds, 7)


def made_up_profile(
    *, num_processes: int = 4, num_cores: int = 2, blocks: tuple[BlockTimes, ...] = ()
) -> ProfileResult:
    """50 GFLOP/s on large products, 100 us and 1 GB/s for every collective, 20 us and 2 GB/s for messages,
    half of it between ranks of which the others wait; 4 GB/s for updates, 2 GB/s of large parameters."""
    products = {
        ("fp32", edge): spread(2 * edge**3 / 50e9 + 2e-6) for edge in (16, 32, 64, 128, 256, 512, 1024)
    }
    collectives = {
        (kind, size, num_bytes): spread(1e-4 * size / 2 + kind.bus_factor(size) * num_bytes / 1e9)
        for kind in CollectiveKind
        if kind is not CollectiveKind.BROADCAST
        for size in (2, 4)
        if size <= num_processes
        for num_bytes in SIZES
    }
    messages = {num_bytes: spread(2e-5 + num_bytes / 2e9) for num_bytes in SIZES}
    has_links = num_processes > 1
    return ProfileResult(
        settings=ProfileSettings(num_processes),
        machine=Machine(
            "Some CPU @ 2 GHz", num_cores, 8 * 2**30, None, 2**28, "Python 3, torch 2", "2026-01-01"
        ),
        compute=ComputeResult(
            products=products,
            short_product=(spread(1.5e-4), 8e6, 16),
            long_product=(spread(1e-4), 8e6, 256),
            streams={65536: spread(65536 / 10e9), 33554432: spread(33554432 / 5e9)},
            updates={2**18: (spread(2**23 * 80 / 4e9), 2**23), 2**23: (spread(2**23 * 80 / 2e9), 2**23)},
            operator=spread(8e-6),
            operator_backward=spread(12e-6),
            attention=(spread(1e-3), 4e7),
        ),
        communication=CommunicationResult(
            collectives if has_links else {},
            messages if has_links else {},
            {size: scaled(one, 0.5) for size, one in messages.items()} if has_links else {},
        ),
        overheads=OverheadResult(Steps(spread(2e-3), spread(10e-3))),
        host_copy=None,
        blocks=blocks,
        elapsed_s=42.0,
        load=0.1,
    )


def block_times(class_key: str, forward_s: float, backward_s: float) -> BlockTimes:
    return BlockTimes(class_key, Precision.FP32, "blocks.0", spread(forward_s), spread(backward_s))
