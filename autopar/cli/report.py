"""Draws a plan: one page that opens in any browser, without a network.

The page holds the timeline of the step, the memory of each stage and over time, all settings that a search
met, the model as a chain of blocks, and what would change the time of a step. --trace writes the timeline for
Perfetto (ui.perfetto.dev).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from autopar.cli.files import writable_path, write_whole
from autopar.cli.flags import add_device_flags, add_output_flags, add_set_flag, seconds
from autopar.cli.given import Given, given_plan
from autopar.cli.outcome import Outcome, document_text
from autopar.cli.results import Costed, to_yaml
from autopar.cli.watching import waiting, watching
from autopar.errors import InfeasibleError, UsageError
from autopar.plan.decisions import Plan
from autopar.report.predicted import fit_word
from autopar.report.text import headline
from autopar.report.trace import trace_document

if TYPE_CHECKING:
    from autopar.capture.capture import Capture
    from autopar.planner.explain import Costing
    from autopar.planner.request import PlanResult

SUMMARY = "draw a plan: one page for a browser, or a trace for Perfetto"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("plan", metavar="PLAN", help="a complete plan file")
    parser.add_argument("-o", "--output", metavar="FILE", help="where the page goes, e.g. report.html")
    parser.add_argument(
        "--trace", metavar="FILE", help="where the timeline goes for Perfetto, e.g. step.json"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="no search: the plan alone, without what was considered and what memory is worth",
    )
    parser.add_argument(
        "--time-limit", type=seconds, metavar="S", help="seconds for each search (default: none)"
    )
    add_device_flags(parser)
    add_set_flag(parser)
    add_output_flags(parser)


def execute(args: argparse.Namespace) -> Outcome:
    """Draws; the result says what was written."""
    if args.output is None and args.trace is None:
        raise UsageError(
            "nothing to write: name a page with -o report.html, or a trace with --trace step.json"
        )
    for flag, path in (("-o", args.output), ("--trace", args.trace)):
        if path == "-":
            raise UsageError(f"{flag} -: neither a page nor a trace goes to stdout; name a file")
    if args.output is not None and args.output == args.trace:
        raise UsageError(f"'{args.output}' cannot be both the page and the trace; name two files")
    if args.output is not None and find_spec("bokeh") is None:
        raise UsageError("drawing needs Bokeh; install it with `pip install 'autopar[report]'`")
    page = None if args.output is None else writable_path(args.output, "-o")
    trace = None if args.trace is None else writable_path(args.trace, "--trace")
    given = given_plan(args, args.plan)

    with waiting(args, "capturing the model, costing the plan"):
        from autopar.planner.check import capture_for
        from autopar.planner.explain import cost_plan

        captured = capture_for(given.plan, given.source)
        costing = cost_plan(given.plan, given.source, given.cluster, given.memory_limit_bytes, captured)
    if trace is not None:
        _write_trace(trace, costing)
    if page is not None:
        free, planned_s = (None, {}) if args.quick else _searched(args, given, costing, captured)
        with waiting(args, "drawing the page"):
            _write_page(args, page, given, costing, free, planned_s)
    files = {"page": args.output, "trace": args.trace}
    if args.json:
        return Outcome(document_text({"schema": 1, **files}))
    return Outcome("".join(f"{what} written to {path}\n" for what, path in files.items() if path))


def _searched(
    args: argparse.Namespace, given: Given, costing: Costing, captured: Capture
) -> tuple[PlanResult | None, dict[float, float]]:
    """The free optimum, and the steps of the best plans with less memory; none where nothing fits."""
    from autopar.planner.replan import Replanner
    from autopar.planner.sensitivity import planned_with_less

    with watching(args) as watcher:
        planner = Replanner(
            given.plan,
            given.source,
            given.cluster,
            captured,
            costing.memory_limit_bytes,
            args.time_limit,
            watcher.doing,
            watcher.news,
        )
        try:
            free = planner.plan(Plan())
            return free, planned_with_less(planner, costing, free)
        except InfeasibleError:
            return None, {}  # the plan is drawn all the same


def _write_trace(path: Path, costing: Costing) -> None:
    from autopar.cost.memory_over_time import memory_over_time
    from autopar.cost.step_timeline import step_timeline

    timeline = step_timeline(costing.layout, costing.cluster)
    memory = memory_over_time(costing.layout, costing.cluster, timeline)
    write_whole(path, json.dumps(trace_document(timeline, memory)) + "\n")


def _write_page(
    args: argparse.Namespace,
    path: Path,
    given: Given,
    costing: Costing,
    free: PlanResult | None,
    planned_s: Mapping[float, float],
) -> None:
    from autopar.planner.picture import picture_of
    from autopar.report.page import report_page

    plan, prediction, cluster = given.plan, costing.prediction, given.cluster
    status = fit_word(prediction)
    assert plan.model is not None
    title = f"{plan.model.source} on {cluster.num_devices} x {cluster.device.name}"
    said = [line.plain for line in headline(plan, prediction, status, None, None)[1:]]
    yaml = to_yaml(Costed(plan, prediction, status))
    picture = picture_of(costing, free, f"{title}: {Path(args.plan).name}", said, yaml, planned_s)
    write_whole(path, report_page(picture))
