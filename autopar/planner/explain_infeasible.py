"""The error where nothing fits: the binding constraint, the shortfall, the remedies."""

from __future__ import annotations

from autopar.errors import InfeasibleError
from autopar.plan.decisions import Plan
from autopar.planner.remedies import Remedies
from autopar.solve.candidate import Job, Shortfall
from autopar.units import format_bytes, format_enough_bytes


def nothing_fits(least: Shortfall, remedies: Remedies, job: Job, settled: Plan) -> InfeasibleError:
    """Names the stage that misses least memory on the best mesh, at its leanest, and what would do."""
    candidate, device = least.candidate, job.cluster.device
    limit_bytes, reserved_bytes = job.memory_limit_bytes, device.framework_reserved_bytes
    usable = f"the {format_bytes(limit_bytes - reserved_bytes)} usable of a {device.name}"
    if limit_bytes <= reserved_bytes:
        usable = (
            f"there is: of {format_bytes(limit_bytes)}, the {format_bytes(reserved_bytes)} that the "
            "framework takes leave nothing"
        )
    if not settled.recompute and not settled.tensor and settled.zero is None:
        lean = "everything recomputed where that helps"
    else:
        lean = "as lean as the constraints allow"
    return InfeasibleError(
        f"no plan fits: memory of stage {least.stage} needs {format_bytes(max(least.missing_bytes, 0))} more "
        f"than {usable}, at best (mesh {candidate.pipeline} x "
        f"{candidate.data} x {candidate.tensor}, micro-batch {candidate.micro_batch}, "
        f"ZeRO {max(candidate.zero)}, {lean}); it would fit {_alternatives(remedies, job)}",
        binding=f"memory of stage {least.stage}",
        shortfall_bytes=max(least.missing_bytes, 0),
        remedies={
            "memory_per_device_bytes": remedies.memory_bytes,
            "devices": remedies.devices,
            "global_batch": remedies.global_batch,
            "micro_batch": remedies.micro_batch,
            "free": list(remedies.free),
        },
    )


def _alternatives(remedies: Remedies, job: Job) -> str:
    texts = [f"on devices with {format_enough_bytes(remedies.memory_bytes)}"]
    if remedies.devices is not None:
        per_node = job.cluster.devices_per_node
        nodes = f" ({remedies.devices // per_node} nodes of {per_node})" if per_node > 1 else ""
        texts.append(f"on {remedies.devices} such devices{nodes}")
    if remedies.global_batch is not None:
        texts.append(f"with batch.global {remedies.global_batch}")
    if remedies.micro_batch is not None:
        texts.append(f"with batch.micro {remedies.micro_batch}")
    texts += [f"with {key} left to the planner" for key in remedies.free]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
