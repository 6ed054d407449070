"""Says why a plan takes what it takes: where its step goes, what it loses against the free optimum.

The free optimum is the best plan of the same model, devices, batch, precision and optimiser. Each line that
was made by hand (in a file that does not tell: each decision that differs) is planned for alone: it costs
the step time of `autopar plan` with that line and nothing else fixed, less that with nothing fixed.

The terms of a rank add up to the step; what is hidden runs beside compute and is no term.
"""

from __future__ import annotations

import argparse

from autopar.cli.explained import module_summary, module_to_json, to_json, to_summary
from autopar.cli.flags import add_device_flags, add_output_flags, add_set_flag, positive, seconds
from autopar.cli.given import given_plan
from autopar.cli.outcome import Outcome
from autopar.cli.watching import waiting, watching
from autopar.errors import UsageError
from autopar.planner.freed_decision import without

SUMMARY = "say where a plan's step goes, why, and what its lines cost"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("plan", metavar="PLAN", help="a complete plan file")
    group = parser.add_argument_group("questions")
    group.add_argument(
        "--node", metavar="NAME", help="about one module, block or parameter alone, e.g. blocks.0.attn"
    )
    group.add_argument(
        "--free",
        action="append",
        default=[],
        metavar="KEY",
        help="what leaving one decision to the planner would gain, e.g. zero (repeatable)",
    )
    group.add_argument(
        "--quick", action="store_true", help="no search: where the step goes, and nothing beside it"
    )
    group.add_argument("--top", type=positive, default=5, metavar="K", help="plans to show (default: 5)")
    group.add_argument(
        "--time-limit", type=seconds, metavar="S", help="seconds for each search (default: none)"
    )
    add_device_flags(parser)
    add_set_flag(parser)
    add_output_flags(parser)


def execute(args: argparse.Namespace) -> Outcome:
    """Explains; a plan that does not fit is explained all the same."""
    if args.quick and args.free:
        raise UsageError("--free asks for a search and --quick forbids it; give one of the two")
    if args.node is not None and args.free:
        raise UsageError("--free is about the plan and --node about one module; give one of the two")
    given = given_plan(args, args.plan)
    for key in args.free:
        without(given.plan, key)  # a misspelt one is found before any work starts

    with waiting(args, "capturing the model, costing the plan"):
        from autopar.planner.check import capture_for
        from autopar.planner.explain import Explanation, cost_plan, explain_plan, fallbacks
        from autopar.planner.explain_module import explain_module

        captured = capture_for(given.plan, given.source)
        costing = cost_plan(given.plan, given.source, given.cluster, given.memory_limit_bytes, captured)
    if args.node is not None:
        use = explain_module(costing, args.node)
        return Outcome(module_to_json(use) if args.json else module_summary(use))
    if args.quick:
        explanation = Explanation(costing, fallbacks(costing.resolved))
    else:
        with watching(args) as watcher:
            explanation = explain_plan(
                costing,
                given.source,
                captured,
                top=args.top,
                free_keys=args.free,
                time_limit_s=args.time_limit,
                progress=watcher.doing,
                watch=watcher.news,
            )
    return Outcome(to_json(explanation) if args.json else to_summary(explanation))
