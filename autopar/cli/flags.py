"""Flags that several verbs share, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from autopar.errors import PlanError, UsageError
from autopar.hardware.yaml_lines import parse_yaml
from autopar.plan.decisions import Plan, Precision, Scalar
from autopar.plan.keys import OPTIMIZERS
from autopar.plan.read import plan_of_document

AUTO = "auto"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """``--arg``."""
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument for build_model, e.g. n_layer=48 (repeatable)",
    )


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """``--gpus``, ``--gpus-per-node``, ``--device``, ``--cluster``, ``--memory-limit``."""
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--gpus", type=positive, metavar="N", help="devices in all (default: those found, or one node)"
    )
    group.add_argument(
        "--gpus-per-node", type=positive, metavar="N", help="devices of a node (default: the device's)"
    )
    group.add_argument(
        "--device", metavar="NAME", help="see `autopar devices`; a unique prefix or a file will do"
    )
    group.add_argument("--cluster", metavar="FILE", help="a cluster file instead of the three above")
    group.add_argument(
        "--memory-limit", metavar="SIZE", help="per device, e.g. 70GiB (default: what the device has)"
    )


def add_decision_flags(parser: argparse.ArgumentParser, *, auto_batch: bool = False) -> None:
    """``--batch``, ``--optimizer``, ``--precision``, ``--set``, ``--with``.

    Args:
        auto_batch: whether ``--batch auto`` is understood.
    """
    group = parser.add_argument_group("decisions (what is not given is solved for)")
    samples = "samples per optimiser step, over all devices"
    group.add_argument(
        "--batch",
        type=positive_or_auto if auto_batch else positive,
        metavar="N|auto" if auto_batch else "N",
        help=f"{samples}; auto: those of the best throughput" if auto_batch else samples,
    )
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="for the bytes of its state (default: adamw)")
    group.add_argument(
        "--precision", choices=[str(p) for p in Precision], help="compute dtype (default: the device's best)"
    )
    add_set_flag(group)
    group.add_argument(
        "--with",
        dest="with_files",
        action="append",
        default=[],
        metavar="FILE",
        help="a plan file, whole or partial, whose lines are constraints (repeatable)",
    )


def add_set_flag(parser: argparse._ActionsContainer) -> None:
    """``--set``."""
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="e.g. mesh.tensor=4 (repeatable)",
    )


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """``--top``, ``--effort``, ``--time-limit``, ``--seed``."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--top", type=positive, default=5, metavar="K", help="alternatives to list (default: 5)"
    )
    group.add_argument(
        "--effort",
        type=positive,
        default=1,
        metavar="N",
        help="times the usual work, to prove more where a plan is only feasible (default: 1)",
    )
    group.add_argument(
        "--time-limit", type=seconds, metavar="S", help="seconds for the solver (default: none)"
    )
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of the solver (default: 0)")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """``--json``, ``-v``, ``-q``."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON document on stdout and nothing else")
    group.add_argument("-v", "--verbose", action="store_true", help="progress, and tracebacks of errors")
    group.add_argument("-q", "--quiet", action="store_true", help="neither progress nor summary on stderr")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def positive_or_auto(text: str) -> int | str:
    """A whole number of at least 1, or ``auto``."""
    if text == AUTO:
        return text
    try:
        return positive(text)
    except argparse.ArgumentTypeError as problem:
        raise argparse.ArgumentTypeError(f"{problem}, nor '{AUTO}'") from problem


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def seconds(text: str) -> float:
    """A positive number of seconds."""
    return _positive_number(text, "a number of seconds above 0")


def tolerance(text: str) -> float:
    """A positive number."""
    return _positive_number(text, "a number above 0, e.g. 1e-9")


def model_arguments(texts: Iterable[str]) -> dict[str, Scalar]:
    """``--arg`` values by name, read as YAML scalars (and ``1e-3`` as the number that it looks like).

    Raises:
        UsageError: not ``name=value``, or a name given twice.
    """
    arguments: dict[str, Scalar] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--arg {text}: write --arg NAME=VALUE, e.g. --arg n_layer=24")
        if name in arguments:
            raise UsageError(f"--arg {text}: '{name}' is given twice, first as {arguments[name]!r}; keep one")
        arguments[name] = _scalar(text, value)
    return arguments


def flag_constraints(batch: int | str | None, optimizer: str | None, precision: str | None) -> list[Plan]:
    """One partial plan for each flag that fixes a decision, named after it for messages."""
    batch = None if batch == AUTO else batch
    documents = [
        (f"--batch {batch}", batch, {"batch": {"global": batch}}),
        (f"--optimizer {optimizer}", optimizer, {"optimizer": optimizer}),
        (f"--precision {precision}", precision, {"precision": precision}),
    ]
    return [
        plan_of_document(document, {}, label) for label, given, document in documents if given is not None
    ]


def _whole(text: str, low: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if number < low:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {low}")
    return number


def _positive_number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not {what}")
    return number


def _scalar(text: str, value: str) -> Scalar:
    try:
        scalar = parse_yaml(value, f"--arg {text}", PlanError)[0]
    except PlanError:
        return value  # whatever YAML would not take is plain text, e.g. '*' or 'a: b'
    if isinstance(scalar, dict | list):
        return value  # plans hold scalars; a model that takes a list reads its text (configs do)
    if isinstance(scalar, str):
        try:
            return float(scalar)  # YAML 1.1 wants 1.0e-3
        except ValueError:
            return scalar
    result: Scalar = scalar
    return result
