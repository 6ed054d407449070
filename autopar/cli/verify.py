"""Runs a plan on processes of this machine and compares it with one process: the loss and every gradient.

TARGET is a plan file, or a model, which is then planned first under the flags of `plan`.
"""

from __future__ import annotations

import argparse

from autopar.cli.files import existing_file
from autopar.cli.flags import (
    add_decision_flags,
    add_device_flags,
    add_model_flags,
    add_output_flags,
    add_search_flags,
    positive,
    seconds,
    tolerance,
)
from autopar.cli.outcome import Outcome, document_text, tell
from autopar.cli.planning import make_plan_of
from autopar.cli.source import load_source_of
from autopar.errors import DifferenceError, UsageError
from autopar.plan.merge import override
from autopar.plan.pins import parse_sets
from autopar.plan.read import read_plan

SUMMARY = "run a plan here and compare it with one process"

_PLANNING_FLAGS = (
    "arg",
    "gpus",
    "gpus_per_node",
    "device",
    "cluster",
    "memory_limit",
    "batch",
    "optimizer",
    "precision",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument(
        "target", metavar="TARGET", help="a plan file (.yaml), or a model as for `autopar plan`"
    )
    group = parser.add_argument_group("verification")
    group.add_argument(
        "--steps", type=positive, default=3, metavar="N", help="optimiser steps to compare (default: 3)"
    )
    group.add_argument(
        "--tolerance",
        type=tolerance,
        default=1e-9,
        metavar="X",
        help="largest relative error (default: 1e-9)",
    )
    group.add_argument(
        "--timeout", type=seconds, default=600.0, metavar="S", help="seconds for all of it (default: 600)"
    )
    group.add_argument(
        "--as-planned",
        action="store_true",
        help="compute in the plan's precision rather than in float64; what its rounding explains is allowed",
    )
    add_model_flags(parser)
    add_device_flags(parser)
    add_decision_flags(parser)
    add_search_flags(parser)
    add_output_flags(parser)


def execute(args: argparse.Namespace) -> Outcome:
    """Verifies; a difference beyond the tolerance is exit status 6."""
    if args.target.endswith((".yaml", ".yml")):
        given = [flag for flag in _PLANNING_FLAGS if getattr(args, flag)] + ["with"] * bool(args.with_files)
        if given:
            flag = given[0].replace("_", "-")
            raise UsageError(
                f"--{flag} is for planning, but '{args.target}' is a plan already; change it with --set"
            )
        plan = override(read_plan(existing_file(args.target, "TARGET")), parse_sets(args.sets))
        source = load_source_of(plan)
    else:
        planned = make_plan_of(args, args.target, default_device="cpu")
        plan, source = planned.result.plan, planned.source

    from autopar.verify.verify import run_verify

    mesh = plan.mesh
    if not args.quiet:
        tell(
            f"verifying pipeline {mesh.pipeline} x data {mesh.data} x tensor {mesh.tensor} "
            f"on processes of this machine, {args.steps} steps in "
            f"{plan.precision if args.as_planned else 'float64'}"
        )
    report = run_verify(
        plan,
        source,
        num_steps=args.steps,
        tolerance=args.tolerance,
        timeout_s=args.timeout,
        seed=args.seed,
        as_planned=args.as_planned,
    )
    if not args.quiet:
        for note in report.notes:
            tell(f"note: {note}")
    remark = ""
    try:
        report.check()
    except DifferenceError as problem:
        remark = f"autopar: {problem}"
    status = 0 if report.ok else DifferenceError.exit_status
    if args.json:
        return Outcome(document_text(report.to_json()), status, remark)
    verdict = "equal to one process" if report.ok else "DIFFERENT from one process"
    result = (
        f"{verdict}: {report.num_steps} steps, worst error of the loss {report.worst_loss_error:.1e},"
        f" of a gradient {report.worst_gradient_error:.1e} ({report.worst_parameter or 'none'}),"
        f" tolerance {report.tolerance:.0e}\n"
    )
    return Outcome(result, status, remark)
