"""What a runner-up loses against the best, in a few words with numbers."""

from __future__ import annotations

from autopar.cost.prediction import Prediction
from autopar.solve.candidate import MeshSolution
from autopar.units import format_bytes


def why_not(other: MeshSolution, best: MeshSolution) -> str:
    """E.g. ``12% slower: bubble 18% of the step against 5%``."""
    slower = other.prediction.step_time_s / best.prediction.step_time_s - 1
    shares = _shares(other.prediction), _shares(best.prediction)
    lost = {
        name: shares[0][name] * other.prediction.step_time_s - shares[1][name] * best.prediction.step_time_s
        for name in shares[0]
    }
    most = max(lost, key=lambda name: lost[name])
    if lost[most] <= 0:
        return f"{slower:.1%} slower"
    return f"{slower:.1%} slower: {most} {shares[0][most]:.0%} of the step against {shares[1][most]:.0%}"


def does_not_fit(missing_bytes: int) -> str:
    """E.g. ``needs 3.10 GiB more than fits``."""
    return f"needs {format_bytes(missing_bytes)} more than fits"


def _shares(prediction: Prediction) -> dict[str, float]:
    """Mean share of the step over the stages that ranks compute, communicate, wait."""
    total = prediction.step_time_s * len(prediction.stages)
    return {
        "compute": sum(stage.compute_s for stage in prediction.stages) / total,
        "communication": sum(stage.comm_s for stage in prediction.stages) / total,
        "bubble": sum(stage.idle_s for stage in prediction.stages) / total,
    }
