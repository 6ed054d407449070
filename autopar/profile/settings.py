"""What is to be profiled, and what came of it: what the processes of a profile exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopar.plan.decisions import Plan, Precision, Scalar
from autopar.profile.block_times import BlockTimes
from autopar.profile.communication import CommunicationResult
from autopar.profile.compute import ComputeResult
from autopar.profile.machine import Machine
from autopar.profile.overheads import OverheadResult
from autopar.profile.spread import Spread
from autopar.units import MiB

HOST_COPY_BYTES = 64 * MiB
"""What is copied from the host to a GPU."""


@dataclass(frozen=True, slots=True)
class ModelToTime:
    """A model whose block classes are timed.

    Attributes:
        target, args: as for ``load_target``.
        micro_batches: sizes to time.
        precision: None: that which the device is planned for by default.
        sharded: complete plans, one for each tensor degree at which blocks are timed as they divide them.
    """

    target: str
    args: Mapping[str, Scalar]
    micro_batches: tuple[int, ...]
    precision: Precision | None = None
    sharded: tuple[Plan, ...] = ()


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """How to profile.

    Attributes:
        num_processes: ranks that run at once.
        kind: ``cpu`` or ``cuda``.
        quick: fewer sizes and shorter repetitions.
        models: whose blocks are timed.
        timeout_s: of the whole run; it is ended, and says where each rank was.
    """

    num_processes: int
    kind: str = "cpu"
    quick: bool = False
    models: tuple[ModelToTime, ...] = ()
    timeout_s: float = 600.0

    def time_share(self, num_cores: int) -> float:
        """Ranks that take turns on a core; 1 on a GPU."""
        return max(1.0, self.num_processes / num_cores) if self.kind == "cpu" else 1.0

    @property
    def with_collectives(self) -> bool:
        """Whether sharded blocks are timed with their collectives: where sending takes the cores that
        compute, what a rank computes after it has waited is slower, too.
        """
        return self.kind == "cpu"

    @property
    def num_passes(self) -> int:
        """How often everything is measured, all of it in turn."""
        return 1 if self.quick else 3

    @property
    def num_repetitions(self) -> int:
        """Of every measurement in a pass."""
        return 3

    @property
    def window_s(self) -> float:
        """Of one repetition."""
        return 0.02 if self.quick else 0.04

    @property
    def wanted_s(self) -> float:
        """After which no further repetitions begin, for each of the parts of a pass."""
        return 6.0 if self.quick else 12.0


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """All that was measured.

    Attributes:
        host_copy: of ``HOST_COPY_BYTES`` from pinned host memory to a GPU; None on a CPU.
        elapsed_s: in all.
        load: average number of processes that wanted a core when the profile began (``os.getloadavg``).
    """

    settings: ProfileSettings
    machine: Machine
    compute: ComputeResult
    communication: CommunicationResult
    overheads: OverheadResult
    host_copy: Spread | None
    blocks: tuple[BlockTimes, ...]
    elapsed_s: float
    load: float

    @property
    def time_share(self) -> float:
        """Ranks that took turns on a core."""
        return self.settings.time_share(self.machine.num_cores)
