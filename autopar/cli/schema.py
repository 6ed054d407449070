"""Prints the JSON Schema of plans, clusters or cost models: what editors complete and check files by.

Files that autopar writes start with a line that names the schema in the folder .autopar beside them, and
`plan -o` puts it there. For a file of your own, `autopar schema cluster -o .autopar/cluster.schema.json` and
the line `# yaml-language-server: $schema=.autopar/cluster.schema.json` do the same.
"""

from __future__ import annotations

import argparse

from autopar.cli.files import writable_path, write_whole
from autopar.cli.flags import add_output_flags
from autopar.cli.outcome import Outcome
from autopar.plan.schema import KINDS, schema_text

SUMMARY = "print the JSON Schema of plans, clusters or cost models, for editors"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    kinds = ", ".join(KINDS)
    parser.add_argument(
        "kind", nargs="?", metavar="KIND", choices=KINDS, default="plan", help=f"{kinds} (default: plan)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="where it goes (default: stdout)")
    add_output_flags(parser)


def execute(args: argparse.Namespace) -> Outcome:
    """The schema, which is JSON with and without ``--json``."""
    text = schema_text(args.kind)
    if args.output in (None, "-"):
        return Outcome(text)
    path = writable_path(args.output, "-o", make_folder=".autopar")
    write_whole(path, text)
    return Outcome("" if args.quiet or args.json else f"schema written to {path}\n")
