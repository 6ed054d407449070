"""Planning after an older plan: its hand-made lines are kept where the new model and cluster allow it.

All are taken as constraints. Where that is refused, the line that the refusal is about is left out, with the
reason, and it is tried again. What is asked for now comes before what the older plan says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autopar.capture.capture import Capture
from autopar.errors import InfeasibleError, PlanError, UsageError
from autopar.plan.decisions import Plan
from autopar.plan.hand_made import decisions, hand_made, without
from autopar.plan.merge import override
from autopar.planner.pins import pinned_first_blocks, resolve_pins
from autopar.planner.planner import Progress, Watch, captured_for, make_plan
from autopar.planner.request import PlanRequest, PlanResult
from autopar.planner.settle import settle

# Where several lines may be what is refused, the first of these goes: what depends most on size and cluster.
_FIRST_TO_GO = (
    "pipeline.stages",
    "batch.micro",
    "mesh.data",
    "shard_group",
    "mesh.pipeline",
    "pipeline.virtual",
    "mesh.tensor",
    "mesh.order",
    "pipeline.schedule",
    "zero",
    "offload",
)


@dataclass(frozen=True, slots=True)
class OldLine:
    """A hand-made line of the older plan.

    Attributes:
        text: ``mesh.tensor: 4``.
        where: ``old.yaml:5:8``.
        why_not: why it could not be kept; empty where it was.
    """

    text: str
    where: str
    why_not: str = ""

    def __str__(self) -> str:
        """For people."""
        kept = f"not kept: {self.why_not}" if self.why_not else "kept"
        return f"{self.where}: {self.text}: {kept}"


def plan_like(
    request: PlanRequest, old: Plan, progress: Progress | None = None, watch: Watch | None = None
) -> tuple[PlanResult, tuple[OldLine, ...]]:
    """The best plan with as many of the hand-made lines of an older one as can be kept.

    Raises:
        InfeasibleError: no plan fits, even without any of them.
        PlanError: what is asked for now is wrong by itself.
        CaptureError: the model cannot be captured.
    """
    asked = request.constraints
    wishes = replace(hand_made(old), model=None, cluster=None, chosen=())
    told = decisions(wishes)
    overruled = {key: "it is given anew" for key in decisions(asked) if key in told}
    for key in overruled:
        wishes = without(wishes, key)
    why_not: dict[str, str] = dict(overruled)
    captured: Capture | None = None
    while True:
        try:
            trial = replace(request, constraints=override(wishes, asked))
            captured = _with_names_checked(trial, captured)
            result = make_plan(trial, progress, captured, watch)
            break
        except (PlanError, InfeasibleError, UsageError) as problem:
            blamed = _blamed(problem, tuple(decisions(wishes)))
            if blamed is None:
                raise
            why_not[blamed] = problem.problems[0].message if isinstance(problem, PlanError) else str(problem)
            wishes = without(wishes, blamed)
    lines = [
        OldLine(f"{key}: {_text(value)}", old.where(key), why_not.get(key, "")) for key, value in told.items()
    ]
    return result, tuple(lines)


def _with_names_checked(trial: PlanRequest, captured: Capture | None) -> Capture:
    """The model; refuses what names something that it does not have before anything is searched."""
    settled, _ = settle(trial)
    captured = captured_for(trial, settled, captured)
    graph = captured.at(settled.micro_batch or 2)
    resolve_pins(settled, graph, 1)
    pinned_first_blocks(settled, graph)
    return captured


def _blamed(problem: PlanError | InfeasibleError | UsageError, wishes: Sequence[str]) -> str | None:
    """The line to leave out; None where none is left."""
    named: list[Callable[[str], bool]] = []
    if isinstance(problem, PlanError):
        keys = [each.key for each in problem.problems if each.key]
        named.append(lambda wish: any(_is_about(key, wish) for key in keys))
    if isinstance(problem, InfeasibleError):
        free = problem.remedies.get("free")
        named.append(lambda wish: _is_about(problem.binding, wish))
        named.append(lambda wish: isinstance(free, list) and any(_is_about(key, wish) for key in free))
    named.append(lambda wish: wish in str(problem))
    named.append(lambda wish: True)
    for is_named in named:
        found = [wish for wish in wishes if is_named(wish)]
        if found:
            return min(found, key=lambda w: _FIRST_TO_GO.index(w) if w in _FIRST_TO_GO else len(_FIRST_TO_GO))
    return None


def _is_about(key: str, wish: str) -> bool:
    return key == wish or key.startswith(f"{wish}.") or (bool(key) and wish.startswith(f"{key}."))


def _text(value: object) -> str:
    return str(value) if not isinstance(value, list) else f"[{', '.join(map(_text, value))}]"
