"""Checks a plan file against its model and its devices, and says what it will cost.

With --set, --device and the like: what the plan would cost so changed.
"""

from __future__ import annotations

import argparse

from autopar.cli.flags import add_device_flags, add_output_flags, add_set_flag
from autopar.cli.given import given_plan
from autopar.cli.outcome import Outcome, tell
from autopar.cli.results import Costed, to_json, to_summary
from autopar.errors import InfeasibleError

SUMMARY = "check an edited plan and cost it again"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("plan", metavar="PLAN", help="a complete plan file")
    add_device_flags(parser)
    add_set_flag(parser)
    add_output_flags(parser)


def execute(args: argparse.Namespace) -> Outcome:
    """Checks and costs; a plan that does not fit into memory is infeasible."""
    given = given_plan(args, args.plan)

    from autopar.planner.check import check_plan

    found = check_plan(given.plan, given.source, given.cluster, memory_limit_bytes=given.memory_limit_bytes)
    if not args.quiet:
        for warning in found.warnings:
            tell(f"warning: {warning}")
        for note in found.notes:
            tell(f"note: {note}")
    prediction = found.prediction
    costed = Costed(given.plan, prediction, "feasible" if prediction.fits else "infeasible")
    result = to_json(costed, args.plan) if args.json else to_summary(costed)
    if found.infeasible is None:
        return Outcome(result)
    return Outcome(result, InfeasibleError.exit_status, f"autopar: {args.plan}: {found.infeasible}")
