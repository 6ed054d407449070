"""Writes a plan in the words of another tool: Megatron-LM, torchtitan, transformers, accelerate, or PyTorch.

What the target cannot say is listed: at the head of the file where it takes comments, and on stderr.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from autopar.cli.collection import collect_seldom
from autopar.cli.files import existing_file, output_path, write_whole
from autopar.cli.flags import add_output_flags, add_set_flag
from autopar.cli.outcome import Outcome, document_text, tell
from autopar.cli.source import load_source_of
from autopar.cli.watching import waiting
from autopar.plan.merge import override
from autopar.plan.pins import parse_sets
from autopar.plan.read import read_plan

SUMMARY = "write a plan in the words of another tool"

NAMES = ("megatron", "torchtitan", "hf-tp-plan", "accelerate", "pytorch")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("plan", metavar="PLAN", help="a plan file")
    parser.add_argument("--to", required=True, metavar="TARGET", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("-o", "--output", metavar="FILE", help="where it goes (default: stdout)")
    add_set_flag(parser)
    add_output_flags(parser)


def execute(args: argparse.Namespace) -> Outcome:
    """Exports."""
    plan = read_plan(existing_file(args.plan, "PLAN"))
    path = plan.path
    plan = override(plan, parse_sets(args.sets))
    output = output_path(args.output)
    collect_seldom()
    with waiting(args, "capturing the model"):
        from autopar.export.subject import subject_of
        from autopar.export.targets import TARGETS

        subject = subject_of(plan, load_source_of(plan))
    exported = TARGETS[args.to](replace(subject, plan=replace(subject.plan, path=path)))
    if not args.quiet and not args.json:
        for line in exported.left_out:
            tell(f"left out: {line}")
    if args.json:
        document = {
            "schema": 1,
            "target": args.to,
            "text": exported.text,
            "left_out": list(exported.left_out),
        }
        return Outcome(document_text(document))
    if output is None:
        return Outcome(exported.text)
    write_whole(output, exported.text)
    return Outcome("" if args.quiet else f"written to {output}\n")
