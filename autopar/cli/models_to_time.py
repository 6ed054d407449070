"""Models whose blocks a profile times: whole, and as plans divide them among the ranks of a tensor axis.

How a block is divided is asked of the planner, with the cost model that comes along for such a device: what
it chooses for the machine as it is then measured divides blocks much the same. The processes of a profile do
without the planner, so it is asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from autopar.errors import InfeasibleError
from autopar.plan.decisions import Mesh, PatternLine, Plan, Precision, Scalar

if TYPE_CHECKING:
    from autopar.capture.target import ModelSource
    from autopar.hardware.device import Device
    from autopar.profile.settings import ModelToTime

# What does not fit in memory is divided and timed all the same: blocks are timed one at a time.
_NO_LIMIT_BYTES = 2**60


def model_to_time(
    target: str,
    args: Mapping[str, Scalar],
    micro_batches: Sequence[int],
    degrees: Sequence[int],
    device: Device,
    precision: Precision | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> ModelToTime:
    """A model, with the plans that divide its blocks.

    Args:
        micro_batches: sizes to time at.
        degrees: of the tensor axes to divide blocks for.
        device: like the one that is measured.
        precision: to time in; None: the usual one of ``device``.
        tell: told what cannot be had.

    Raises:
        UsageError: the model cannot be loaded.
        CaptureError: it cannot be captured.
    """
    from autopar.capture.target import load_target
    from autopar.profile.settings import ModelToTime

    source = load_target(target, args)  # a mistake is found before anything is measured
    sizes = tuple(sorted(set(micro_batches)))
    plans = dividing_plans(source, max(sizes), degrees, device, precision, tell) if degrees else ()
    return ModelToTime(target, args, sizes, precision, plans)


def dividing_plans(
    source: ModelSource,
    micro_batch: int,
    degrees: Sequence[int],
    device: Device,
    precision: Precision | None,
    tell: Callable[[str], None],
) -> tuple[Plan, ...]:
    """The quickest plan of each tensor degree alone, without what has no bearing on how blocks are divided.

    Raises:
        CaptureError: the model cannot be captured.
    """
    try:
        from autopar.capture.capture import capture
        from autopar.hardware.cluster import make_cluster
        from autopar.planner.check import DTYPES
        from autopar.planner.planner import make_plan
        from autopar.planner.request import PlanRequest
    except ModuleNotFoundError as problem:
        tell(f"blocks are timed whole only: there is no planner here ({problem})")
        return ()
    chosen = precision or Precision(device.default_precision)
    captured = capture(source, DTYPES[chosen])
    none = (PatternLine("*", "none"),)
    found = []
    for degree in degrees:
        pins = Plan(mesh=Mesh(1, 1, degree), micro_batch=micro_batch, zero=0, recompute=none, offload="none")
        request = PlanRequest(
            source,
            make_cluster(device, 1, degree),
            global_batch=micro_batch,
            precision=chosen,
            memory_limit_bytes=_NO_LIMIT_BYTES,
            constraints=pins,
            top=1,
            with_baselines=False,
        )
        try:
            found.append(make_plan(request, captured=captured).plan)
        except InfeasibleError as problem:
            tell(f"blocks are not timed as {degree} ranks divide them: {problem}")
    return tuple(found)
