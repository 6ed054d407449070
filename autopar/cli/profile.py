"""Measures this machine and writes what it finds as a cost model, which --device and --cluster take.

Every process runs the same at once, as in training: matrix products, memory-bound operators, collectives and
messages by size, the runtime's own overhead. With --model, the block classes of a model are timed as well,
whole and as tensor axes of 2, 4, ... processes divide them, and plans of it rest on what they took. The cost
model goes to stdout, or to FILE under -o. It takes some two minutes, some twenty seconds under --quick, and a
machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autopar.cli.files import output_path, write_for_editors
from autopar.cli.flags import add_model_flags, add_output_flags, model_arguments, positive, seconds
from autopar.cli.outcome import Outcome, document_text, tell
from autopar.errors import UsageError
from autopar.plan.decisions import Precision, Scalar

if TYPE_CHECKING:
    from autopar.profile.settings import ModelToTime, ProfileResult, ProfileSettings

SUMMARY = "measure this machine, and write a cost model of it"

_MOST_PROCESSES = 64
_MICRO_BATCHES = (1, 2, 4, 8)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("-o", "--output", metavar="FILE", help="where the cost model goes (default: stdout)")
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPUs, where there are any, else the CPU"
    )
    group.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="at once (default: one for each GPU; on a CPU 4)",
    )
    group.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="TARGET",
        help="a model as for `autopar plan`, whose blocks are timed (repeatable)",
    )
    group.add_argument(
        "--micro",
        action="append",
        type=positive,
        metavar="N",
        help=f"micro-batch to time blocks at (repeatable; default: {', '.join(map(str, _MICRO_BATCHES))})",
    )
    group.add_argument(
        "--precision",
        choices=[str(p) for p in Precision],
        help="to time blocks in (default: bf16 on a GPU, fp32 on a CPU)",
    )
    group.add_argument("--quick", action="store_true", help="fewer sizes, shorter repetitions")
    group.add_argument("--name", help="of the device (default: that of the file, else this-machine)")
    group.add_argument(
        "--timeout", type=seconds, default=600.0, metavar="S", help="seconds for all of it (default: 600)"
    )
    add_model_flags(parser)
    add_output_flags(parser)


def execute(args: argparse.Namespace) -> Outcome:
    """Measures; the result is the cost model, a few lines about it (with -o), or the JSON document."""
    path = output_path(args.output)
    if path is not None and path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"-o {args.output}: a cost model is a .yaml file, by which --device knows it")
    settings = _settings(args)
    name = _device_name(args.name, path)

    from autopar.profile.cost_model import cost_model_document, cost_model_text
    from autopar.profile.run import run_profile

    if not args.quiet:
        tell(
            f"measuring {settings.num_processes} processes ({settings.kind}) at once; let nothing else run"
            " meanwhile"
        )
    result = run_profile(settings, None if args.quiet else tell)
    text = cost_model_text(result, name)
    if path is not None:
        write_for_editors(path, text, "cost-model")
    if args.json:
        document = cost_model_document(result, name)
        return Outcome(document_text({"schema": 1, "file": str(path) if path else None, "device": document}))
    if path is None:
        return Outcome(text)
    return Outcome(_summary(result, path))


def _settings(args: argparse.Namespace) -> ProfileSettings:
    if not args.model:
        given = [flag for flag in ("micro", "arg", "precision") if getattr(args, flag)]
        if given:
            raise UsageError(f"--{given[0]} is about the blocks of a model; name it with --model")
    arguments = model_arguments(args.arg)

    from autopar.profile.settings import ProfileSettings

    kind, found = _kind(args.device)
    num_processes = args.processes or (found if kind == "cuda" else 4)
    if num_processes > (found if kind == "cuda" else _MOST_PROCESSES):
        has = f"{found} GPUs here" if kind == "cuda" else f"at most {_MOST_PROCESSES} processes"
        raise UsageError(f"--processes {num_processes}: there are {has}; ask for fewer")
    settings = ProfileSettings(num_processes, kind, quick=args.quick, timeout_s=args.timeout)
    return replace(settings, models=tuple(_model(target, arguments, settings, args) for target in args.model))


def _model(
    target: str, arguments: dict[str, Scalar], settings: ProfileSettings, args: argparse.Namespace
) -> ModelToTime:
    from autopar.cli.models_to_time import model_to_time
    from autopar.profile.communication import group_sizes
    from autopar.profile.cost_model import base_device

    num = settings.num_processes
    return model_to_time(
        target,
        arguments,
        args.micro or _MICRO_BATCHES,
        group_sizes(num) if num > 1 else (),
        base_device(settings.kind, _processor(settings.kind)),
        Precision(args.precision) if args.precision else None,
        (lambda text: None) if args.quiet else tell,
    )


def _processor(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else ""


def _kind(device: str | None) -> tuple[str, int]:
    """The kind of device to measure, and how many GPUs there are."""
    if device == "cpu":
        return "cpu", 0
    import torch

    found = torch.cuda.device_count()
    if device == "cuda" and not found:
        raise UsageError("--device cuda: no GPU was found on this machine; use --device cpu")
    return ("cuda" if found else "cpu"), found


def _device_name(given: str | None, path: Path | None) -> str:
    name = given or (path.stem if path is not None else "this-machine")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-").lower() or "this-machine"


def _summary(result: ProfileResult, path: Path) -> str:
    lines = [f"cost model written to {path} ({result.elapsed_s:.0f} s); use it with --device {path}"]
    if result.blocks:
        lines.append(f"{len(result.blocks)} block classes were timed: plans of these models rest on them")
    if result.load > 0.5 * result.machine.num_cores:
        lines.append(
            f"note: the machine was busy (load {result.load:.1f} on {result.machine.num_cores} cores);"
            " measure again when nothing else runs"
        )
    return "\n".join(lines) + "\n"
