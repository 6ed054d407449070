"""The ``autopar`` command: runs a verb, prints its result, turns errors into one line and an exit status.

Verbs import what they need when they run, so that ``--help`` and ``devices`` do not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import NoReturn, Protocol, cast

from autopar import __version__
from autopar.cli.failure import failure_document
from autopar.cli.outcome import Outcome, document_text, tell
from autopar.errors import AutoparError, FileError, UsageError, closest_match

VERBS = ("plan", "check", "explain", "diff", "report", "verify", "profile", "devices", "schema", "export")

EXIT_BUG = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

_STATUSES = """\
exit status: 0 done, 1 a bug of autopar, 2 wrong usage, 3 infeasible, 4 invalid plan or cost model,
5 the model could not be captured, 6 verify found a difference, 130 interrupted"""


class Verb(Protocol):
    """What the module of a verb offers."""

    SUMMARY: str
    """What it does, in one line."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of the verb."""

    def execute(self, args: argparse.Namespace) -> Outcome:
        """Runs the verb."""


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of printing the whole usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].lower()}{message[1:]} (see `{self.prog} --help`)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = _Parser(
        prog="autopar",
        description="Plans how to train a PyTorch model on the GPUs you have.",
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"autopar {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for name in VERBS:
        module = _module(name)
        verb = verbs.add_parser(name, help=module.SUMMARY, description=module.__doc__, allow_abbrev=False)
        verb.formatter_class = argparse.RawDescriptionHelpFormatter
        module.configure(verb)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    is_verbose = "-v" in argv or "--verbose" in argv
    _set_up_streams(is_verbose)
    try:
        outcome = _outcome(argv, is_verbose)
        sys.stdout.write(outcome.result)
        sys.stdout.flush()
        if outcome.remark:
            tell(outcome.remark)
        return outcome.exit_status
    except KeyboardInterrupt:
        tell("autopar: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`autopar plan ... | head`): nobody is left to tell.
        _drop_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as problem:
        _drop_stdout()
        tell(f"autopar: the result cannot be written: {problem.strerror}; free some space, or use -o FILE")
        return UsageError.exit_status


def _outcome(argv: list[str], is_verbose: bool) -> Outcome:
    """What a command line comes to; an error that a person must know of is one, with its exit status."""
    try:
        args = _parse(argv)
        # A model file may print; stdout is for results only.
        with redirect_stdout(sys.stderr):
            return _module(args.verb).execute(args)
    except AutoparError as problem:
        if is_verbose:
            traceback.print_exc()
        told = problem.problems if isinstance(problem, FileError) else (problem,)
        result = document_text(failure_document(problem)) if "--json" in argv else ""
        return Outcome(result, problem.exit_status, "\n".join(f"autopar: {each}" for each in told))
    except BrokenPipeError:
        raise
    except Exception as problem:
        if is_verbose:
            traceback.print_exc()
        hint = "" if is_verbose else ", with what `-v` adds"
        said = (
            f"autopar: bug: {type(problem).__name__}: {problem}\nThis is our fault; please report it{hint}."
        )
        return Outcome("", EXIT_BUG, said)


def _drop_stdout() -> None:
    """What is left to write goes nowhere, so that the end of the process does not complain of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run() -> NoReturn:
    """The entry point of the ``autopar`` command."""
    sys.exit(main())


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = build_parser()
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is not None and first not in VERBS:
        raise UsageError(
            f"there is no verb '{first}'{closest_match(first, VERBS)} (verbs: {', '.join(VERBS)})"
        )
    if not argv:
        parser.print_help(sys.stderr)
        raise UsageError(f"name a verb ({', '.join(VERBS)})")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for action in _actions(args.verb) for option in action.option_strings]
        name = unknown[0].partition("=")[0]
        hint = closest_match(name, known) if name.startswith("-") else ""
        raise UsageError(f"unknown argument '{unknown[0]}'{hint} (see `autopar {args.verb} --help`)")
    return args


def _actions(verb: str) -> list[argparse.Action]:
    parser = _Parser(prog=f"autopar {verb}")
    _module(verb).configure(parser)
    return list(parser._actions)


def _module(verb: str) -> Verb:
    return cast(Verb, importlib.import_module(f"autopar.cli.{verb}"))


def _set_up_streams(is_verbose: bool) -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets '?' for what it lacks
    if hasattr(sys.stdout, "reconfigure") and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # plans and JSON are UTF-8, wherever they are sent
    logging.basicConfig(level=logging.INFO if is_verbose else logging.ERROR, format="%(name)s: %(message)s")
    if not is_verbose:
        warnings.simplefilter("ignore")  # of libraries; what a user must know is an error or a remark of ours
