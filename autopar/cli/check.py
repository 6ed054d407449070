"""Checks a plan file against its model and its devices, and says what it will cost.

All errors of the file are told at once, then all against the model; and what is legal but odd, with the time
that it costs. With --set, --device and the like: what the plan would cost so changed; the file stays as it
is, unless -o names one.
"""

from __future__ import annotations

import argparse

from autopar.cli.checked import changed_lines, checked_json
from autopar.cli.files import output_path, write_for_editors
from autopar.cli.flags import add_device_flags, add_output_flags, add_set_flag
from autopar.cli.given import given_plan
from autopar.cli.outcome import Outcome, tell
from autopar.cli.results import Costed, to_summary, to_yaml
from autopar.cli.watching import waiting
from autopar.errors import InfeasibleError, UsageError
from autopar.report.predicted import fit_word

SUMMARY = "check an edited plan and cost it again; --set: ask what a change would cost"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("plan", metavar="PLAN", help="a complete plan file")
    add_device_flags(parser)
    add_set_flag(parser)
    add_output_flags(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="where the plan so changed goes; - for stdout")


def execute(args: argparse.Namespace) -> Outcome:
    """Checks and costs; a plan that does not fit into memory is infeasible."""
    path = output_path(args.output)
    given = given_plan(args, args.plan)

    try:
        with waiting(args, "capturing the model, costing the plan"):
            from autopar.planner.examine import examine

            found = examine(
                given.plan,
                given.source,
                given.cluster,
                memory_limit_bytes=given.memory_limit_bytes,
                unchanged=given.unchanged,
            )
    except UsageError as problem:  # of the model's own code, called with what the plan says
        raise given.plan.error("model.args", str(problem)) from problem
    prediction = found.result.prediction
    if not args.quiet:
        for warning in found.result.warnings:
            tell(f"warning: {warning}")
        for oddity in found.oddities:
            tell(f"warning: {oddity.text(prediction.step_time_s)}")
        for note in found.result.notes:
            tell(f"note: {note}")
    costed = Costed(given.plan, prediction, fit_word(prediction))
    if path is not None:
        write_for_editors(path, to_yaml(costed), "plan")
    said = "".join(changed_lines(found, args.sets))
    if args.json:
        result = checked_json(costed, found, args.plan, args.sets)
    elif args.output == "-":
        result = to_yaml(costed)
        if not args.quiet:
            tell(said + to_summary(costed, to_stderr=True))
    else:
        result = said + to_summary(costed) + (f"plan written to {path}\n" if path is not None else "")
    if found.result.infeasible is None:
        return Outcome(result)
    return Outcome(result, InfeasibleError.exit_status, f"autopar: {args.plan}: {found.result.infeasible}")
