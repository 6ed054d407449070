"""Compares two plans of one model: what they decide differently, and what each decision alone does.

Each decision of the second plan is tried in the first, everything else being left as it is; what cannot be
tried alone, or does something only together with others, is one remainder.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from autopar.cli.explained import breakdown_document
from autopar.cli.files import existing_file
from autopar.cli.flags import add_device_flags, add_output_flags
from autopar.cli.given import given_plan
from autopar.cli.outcome import Outcome, document_text, tell
from autopar.cli.terminal import rendered
from autopar.cli.watching import waiting
from autopar.errors import CaptureError, PlanError, UsageError
from autopar.plan.changed_lines import ChangedLine, changed_lines
from autopar.plan.read import read_plan
from autopar.report.explained import signed_bytes, signed_seconds
from autopar.report.text import plain_table
from autopar.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from autopar.planner.compare import Comparison

SUMMARY = "say how two plans differ, and what each decision does"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("first", metavar="A", help="a plan file")
    parser.add_argument("second", metavar="B", help="another plan of the same model")
    parser.add_argument(
        "--text-only", action="store_true", help="the lines that differ, without costing anything"
    )
    parser.set_defaults(sets=[])
    add_device_flags(parser)
    add_output_flags(parser)


def execute(args: argparse.Namespace) -> Outcome:
    """Compares; where the model is not there, the lines alone."""
    lines = changed_lines(
        read_plan(existing_file(args.first, "A")), read_plan(existing_file(args.second, "B"))
    )
    if args.text_only or not lines:
        return _of_lines(args, lines)
    try:
        comparison = _costed(args)
    except (CaptureError, PlanError, UsageError) as problem:
        if not args.quiet:
            tell(f"note: the plans are not costed, only their lines are compared: {problem}")
        return _of_lines(args, lines)
    return Outcome(_to_json(comparison) if args.json else _to_summary(args, comparison))


def _costed(args: argparse.Namespace) -> Comparison:
    first, second = given_plan(args, args.first, "A"), given_plan(args, args.second, "B")
    with waiting(args, "capturing the model, costing both plans"):
        from autopar.planner.compare import Side, compare_plans

        sides = [Side(given.plan, given.cluster, given.memory_limit_bytes) for given in (first, second)]
        return compare_plans(sides[0], sides[1], first.source)


def _of_lines(args: argparse.Namespace, lines: tuple[ChangedLine, ...]) -> Outcome:
    if args.json:
        document = [{"key": x.key, "first": x.first, "second": x.second} for x in lines]
        return Outcome(document_text({"schema": 1, "lines": document}))
    if not lines:
        return Outcome("the plans say the same\n")
    table = plain_table("line", args.first, args.second)
    for line in lines:
        table.add_row(line.key, line.first, line.second)
    return Outcome(rendered([table]))


def _to_summary(args: argparse.Namespace, comparison: Comparison) -> str:
    mine, theirs = comparison.first.prediction, comparison.second.prediction
    table = plain_table("decision", "in the first", "in the second", ">step", ">peak memory")
    for effect in comparison.effects:
        if effect.extra_s is None or effect.extra_bytes is None:
            table.add_row(effect.key, effect.first, effect.second, "", "not tried")
        else:
            extra = signed_seconds(effect.extra_s), signed_bytes(effect.extra_bytes)
            table.add_row(effect.key, effect.first, effect.second, *extra)
    if abs(comparison.rest_s) > 1e-12 or comparison.rest_bytes:
        rest = signed_seconds(comparison.rest_s), signed_bytes(comparison.rest_bytes)
        table.add_row("together, beyond that", "", "", *rest)
    parts: list[RenderableType] = [
        Text(
            f"{args.first}: {format_seconds(mine.step_time_s)}, {format_bytes(mine.peak_memory_bytes)}; "
            f"{args.second}: {format_seconds(theirs.step_time_s)}, {format_bytes(theirs.peak_memory_bytes)}",
            style="bold",
        ),
        Text("each decision of the second tried alone in the first"),
        table,
    ]
    refused = [effect for effect in comparison.effects if effect.extra_s is None]
    if refused:
        parts += [Text(), *(Text(f"{effect.key} is not tried alone: {effect.remark}") for effect in refused)]
    return rendered(parts)


def _to_json(comparison: Comparison) -> str:
    sides = {
        name: {
            "step_time_s": costing.prediction.step_time_s,
            "peak_memory_bytes": costing.prediction.peak_memory_bytes,
            "step": breakdown_document(costing.breakdown),
        }
        for name, costing in (("first", comparison.first), ("second", comparison.second))
    }
    effects = [
        {
            "key": effect.key,
            "first": effect.first,
            "second": effect.second,
            "extra_s": effect.extra_s,
            "extra_bytes": effect.extra_bytes,
            "remark": effect.remark,
        }
        for effect in comparison.effects
    ]
    rest = {"rest_s": comparison.rest_s, "rest_bytes": comparison.rest_bytes}
    return document_text({"schema": 1, **sides, "decisions": effects, **rest})
