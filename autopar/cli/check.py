"""Checks a plan file against its model and its devices, and says what it will cost.

With --set, --device and the like: what the plan would cost so changed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from autopar.cli.devices_choice import choose_cluster, is_replanned, memory_limit_bytes, reference_to
from autopar.cli.files import existing_file
from autopar.cli.flags import add_device_flags, add_output_flags, add_set_flag
from autopar.cli.outcome import Outcome, tell
from autopar.cli.results import Costed, to_json, to_summary
from autopar.cli.source import load_source_of
from autopar.errors import InfeasibleError
from autopar.plan.merge import override
from autopar.plan.pins import parse_sets
from autopar.plan.read import read_plan

SUMMARY = "check an edited plan and cost it again"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("plan", metavar="PLAN", help="a complete plan file")
    add_device_flags(parser)
    add_set_flag(parser)
    add_output_flags(parser)


def execute(args: argparse.Namespace) -> Outcome:
    """Checks and costs; a plan that does not fit into memory is infeasible."""
    plan = read_plan(existing_file(args.plan, "PLAN"))
    pins = parse_sets(args.sets)
    limit_bytes = memory_limit_bytes(args, plan)
    cluster, choice = choose_cluster(args, plan)
    if choice and not args.quiet:
        tell(choice)
    if plan.cluster is not None and is_replanned(cluster, plan.cluster) and not args.quiet:
        tell(
            f"warning: the plan was made for {plan.cluster.num_devices} x {plan.cluster.device}; "
            f"costed for {cluster.num_devices} x {cluster.device.name}"
        )
    plan = override(replace(plan, cluster=reference_to(cluster, limit_bytes)), pins)
    source = load_source_of(plan)

    from autopar.planner.check import check_plan

    found = check_plan(plan, source, cluster, memory_limit_bytes=limit_bytes)
    if not args.quiet:
        for warning in found.warnings:
            tell(f"warning: {warning}")
        for note in found.notes:
            tell(f"note: {note}")
    prediction = found.prediction
    costed = Costed(plan, prediction, "feasible" if prediction.fits else "infeasible")
    result = to_json(costed, args.plan) if args.json else to_summary(costed)
    if found.infeasible is None:
        return Outcome(result)
    return Outcome(result, InfeasibleError.exit_status, f"autopar: {args.plan}: {found.infeasible}")
