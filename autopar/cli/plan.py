"""Plans a model for a cluster: mesh, micro-batch, stages, placements, ZeRO, recompute.

MODEL is path.py, path.py:factory, package.module:factory, or a folder or file with a Hugging Face
config.json. The plan goes to stdout, or to FILE under -o.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from autopar.cli.files import output_path, write_for_editors
from autopar.cli.flags import (
    AUTO,
    add_decision_flags,
    add_device_flags,
    add_model_flags,
    add_output_flags,
    add_search_flags,
)
from autopar.cli.outcome import Outcome, document_text, tell
from autopar.cli.planning import make_plan_of
from autopar.cli.results import Costed, plan_document, to_summary, to_yaml
from autopar.errors import UsageError

SUMMARY = "find the fastest way to train a model on some devices"
# Above the bound: a plan for which more work may tell something.
_MUCH_UNPROVED, _MORE_WORK = 0.05, 4


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument(
        "target", metavar="MODEL", help="path.py, path.py:factory, package.module:factory, or config.json"
    )
    add_model_flags(parser)
    add_device_flags(parser)
    add_decision_flags(parser, auto_batch=True)
    parser.add_argument(
        "--like",
        metavar="FILE",
        help="an older plan: its hand-made lines are kept where the model and the devices allow it",
    )
    add_search_flags(parser)
    add_output_flags(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="where the plan goes (default: stdout)")


def execute(args: argparse.Namespace) -> Outcome:
    """Plans; the result is the plan, its summary (with -o), or the JSON document."""
    if args.like is not None and args.batch == AUTO:
        raise UsageError(
            "--like keeps a plan's batch, so --batch auto has nothing to choose; give one of them"
        )
    path = output_path(args.output)
    planned = make_plan_of(args, args.target)
    costed = Costed.of_result(planned.result)
    if path is not None:
        write_for_editors(path, to_yaml(costed), "plan")
    if args.json:
        document = plan_document(costed, str(path) if path else None)
        if args.like is not None:
            document["like"] = [asdict(line) for line in planned.old_lines]
        return Outcome(document_text(document))
    _tell_of_more_work(args, planned.result.gap)
    if path is not None:
        written = f"plan written to {path}\n"
        return Outcome(written if args.quiet else to_summary(costed) + written)
    if not args.quiet:
        tell(to_summary(costed, to_stderr=True))
    return Outcome(to_yaml(costed))


def _tell_of_more_work(args: argparse.Namespace, gap: float) -> None:
    """How to learn more of a plan that is far from proved."""
    if gap > _MUCH_UNPROVED and args.time_limit is None and not args.quiet:
        more = _MORE_WORK * args.effort
        tell(
            f"note: the last {gap:.0%} are unproved, not lost; --effort {more} searches up to {more} times "
            "as long for a better plan or bound"
        )
