"""What ``check`` prints beside the plan's summary: errors and oddities as data, and what a change does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from autopar.cli.failure import failure_document
from autopar.cli.outcome import document_text
from autopar.cli.results import Costed, plan_document
from autopar.cost.prediction import Prediction
from autopar.report.predicted import format_percent, prediction_document
from autopar.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from autopar.planner.examine import Examined

_FIGURES: tuple[tuple[str, Callable[[Prediction], float], Callable[[float], str]], ...] = (
    ("step time", lambda p: p.step_time_s, format_seconds),
    ("samples/s", lambda p: p.samples_per_s, lambda rate: f"{rate:.4g}"),
    ("MFU", lambda p: p.mfu, format_percent),
    ("peak memory", lambda p: p.peak_memory_bytes, format_bytes),
)


def changed_lines(found: Examined, changes: Sequence[str]) -> Iterator[str]:
    """Before and after, a line a figure; nothing where nothing was changed."""
    if not changes:
        return
    yield f"what if {', '.join(changes)}\n"
    if found.before is None:
        yield f"  the plan as it is cannot be costed: {found.why_not_before}\n\n"
        return
    before, after = found.before.prediction, found.result.prediction
    for name, figure, text in _FIGURES:
        old, new = figure(before), figure(after)
        change = f"  ({new / old - 1:+.1%})" if old and new != old else ""
        yield f"  {name:<12} {text(old):>10} -> {text(new):>10}{change}\n"
    if before.fits != after.fits:
        yield f"  {'it fits now' if after.fits else 'it does not fit any more'}\n"
    yield "\n"


def checked_json(costed: Costed, found: Examined, plan_file: str, changes: Sequence[str]) -> str:
    """The document of ``check --json``, schema 1."""
    document = plan_document(costed, plan_file)
    document["warnings"] = [
        *({"message": text, "key": None, "where": None, "cost_s": None} for text in found.result.warnings),
        *(
            {"message": o.message, "key": o.key, "where": o.where or None, "cost_s": o.cost_s}
            for o in found.oddities
        ),
    ]
    if (shortage := found.result.infeasible) is not None:
        document |= {key: value for key, value in failure_document(shortage).items() if key not in document}
    if changes:
        before = found.before
        document["what_if"] = {
            "changes": list(changes),
            "before": None if before is None else prediction_document(before.prediction),
            "why_not_before": found.why_not_before or None,
        }
    return document_text(document)
