"""Devices that a plan does not need: a tensor axis on which nothing is divided."""

from __future__ import annotations

from itertools import chain

from autopar.plan.decisions import Plan


def repeated_work(plan: Plan) -> str:
    """That the ranks of the tensor axis of a complete plan all do the same, in a sentence; else empty.

    It is the best that is left where links are so slow that dividing costs more than it saves.
    """
    tensor = plan.mesh.tensor or 1
    words = {line.word for line in chain(plan.tensor, plan.activations)}
    if tensor == 1 or plan.operators or words - {"replicate"}:
        return ""
    needed = (plan.mesh.pipeline or 1) * (plan.mesh.data or 1)
    return (
        f"nothing is divided on the tensor axis: its {tensor} ranks repeat each other's work, and {needed} "
        f"of the {needed * tensor} devices would be as quick"
    )
