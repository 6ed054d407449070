"""Kills ranks of a training run at random moments, and compares what comes out with a run left alone.

    python benchmarks/faults.py --kills 30 --steps 300

Both runs are ``examples/train.py`` under torchrun. A kill is a SIGKILL of one rank, drawn with its moment
from a seed: in or between steps, while a checkpoint is written, or while the ranks start again. Losses are
compared bit for bit, and so is every tensor of the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from autopar.cli.main import main as main_of_cli
from autopar.lifeline import end_with_parent

ROOT = Path(__file__).resolve().parents[1]
MODEL_ARGS = ("n_layer=2", "n_embd=32", "n_head=4", "seq=16", "vocab=64", "dropout=0.1")
PINS = {2: ("mesh.pipeline=2",), 4: ("mesh.pipeline=2", "mesh.data=2", "zero=1")}
START = [sys.executable, "-m", "torch.distributed.run"]
TRAIN = str(ROOT / "examples" / "train.py")


@dataclass(frozen=True, slots=True)
class Kill:
    """One SIGKILL.

    Attributes:
        after_step: steps that the run had done.
        where: what the run was doing.
    """

    rank: int
    after_step: int
    where: str


def make_plan(path: Path, num_processes: int) -> Path:
    """A plan of a small GPT with dropout, so that random numbers must be those of an undisturbed run, too."""
    args = [x for argument in MODEL_ARGS for x in ("--arg", argument)]
    pins = [x for pin in PINS[num_processes] for x in ("--set", pin)]
    flags = ["--gpus", str(num_processes), "--device", "cpu", "--batch", "8", "-q", "-o", str(path)]
    assert main_of_cli(["plan", str(ROOT / "examples" / "gpt.py"), *args, *pins, *flags]) == 0
    return path


def start(out: Path, command: Sequence[str]) -> subprocess.Popen[str]:
    """Starts a training run that saves into ``out``; what it says goes to ``out/log``."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log").open("a") as log:
        return subprocess.Popen(
            [*command, "--out", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )


def workers_of(parent: int) -> dict[int, int]:
    """Ranks of the living child processes that train, and their process numbers."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) != parent or fields[0] == "Z":
                continue
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(x.removeprefix(b"RANK=")) for x in variables if x.startswith(b"RANK=")]
        found.update({ranks[0]: int(folder.name)} if ranks else {})
    return found


def steps_done(out: Path) -> int:
    """Steps in the file of losses."""
    path = out / "losses.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def disturb(
    run: subprocess.Popen[str], out: Path, num_processes: int, num_steps: int, num_kills: int, seed: int
) -> list[Kill]:
    """Kills ranks; every fourth time while they start again after the kill before."""
    draw = random.Random(seed)
    thresholds = sorted(draw.randrange(1, num_steps - 10) for _ in range(num_kills - num_kills // 4))
    kills: list[Kill] = []
    workers: dict[int, int] = {}
    start_s = 0.0
    while len(kills) < num_kills:
        workers = next_workers(run, num_processes, gone=set(workers.values()))
        began_s, file = time.monotonic(), file_number(out)
        is_starting = len(kills) % 4 == 3
        if is_starting:
            moment_s = began_s + draw.uniform(0.0, start_s)
            wait_until(lambda: time.monotonic() > moment_s or file_number(out) != file, run)  # noqa: B023
        else:
            threshold = thresholds.pop(0)
            wait_until(partial(is_another_file, out, file), run)
            start_s = start_s or time.monotonic() - began_s
            wait_until(partial(has_done, out, threshold), run)
            time.sleep(draw.uniform(0.0, 0.1))
        rank = draw.randrange(num_processes)
        where = "saving" if any(out.glob(".*.partial")) else "starting" if is_starting else "training"
        try:
            os.kill(workers[rank], signal.SIGKILL)
        except (KeyError, ProcessLookupError):  # the run is over
            break
        kills.append(Kill(rank, steps_done(out), where))
    return kills


def next_workers(run: subprocess.Popen[str], num_processes: int, gone: set[int]) -> dict[int, int]:
    """The processes of the next attempt by rank, when all of them are there."""
    found: dict[int, int] = {}
    while run.poll() is None and (len(found) < num_processes or gone & set(found.values())):
        found = workers_of(run.pid)
        time.sleep(0.005)
    return found


def wait_until(is_so: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    """Waits for a condition, as long as the run goes on."""
    while run.poll() is None and not is_so():
        time.sleep(0.005)


def file_number(out: Path) -> int:
    """Of the file of losses, which is another one after every start."""
    path = out / "losses.jsonl"
    return path.stat().st_ino if path.exists() else 0


def is_another_file(out: Path, number: int) -> bool:
    """Whether the ranks have started again since the file of losses had this number."""
    return file_number(out) != number


def has_done(out: Path, num_steps: int) -> bool:
    """Whether the run has come so far."""
    return steps_done(out) >= num_steps


def losses_of(out: Path) -> list[tuple[int, float]]:
    """(step, loss) in the order in which they were written."""
    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Names of what is not the same, bit for bit, in two checkpoints."""
    found = []
    for folder in (one, other):
        file = folder.parent / "whole.pt"
        dcp_to_torch_save(folder, file)
        found.append(_flat("", torch.load(file, weights_only=False)))
    assert found[0].keys() == found[1].keys()
    return [name for name, value in found[0].items() if not _is_same(value, found[1][name])]


def _flat(prefix: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: leaf for key, x in value.items() for name, leaf in _flat(f"{prefix}.{key}", x).items()}


def _is_same(one: object, other: object) -> bool:
    return (
        torch.equal(one, other)
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        else one == other
    )


def train_command(plan: Path, num_processes: int, num_steps: int, *flags: str) -> list[str]:
    """A run of so many steps, with a checkpoint every ten."""
    torchrun = [*START, "--standalone", f"--nproc-per-node={num_processes}", *flags]
    return [*torchrun, TRAIN, str(plan), "--steps", str(num_steps), "--save-every", "10"]


def train_undisturbed(plan: Path, out: Path, num_processes: int, num_steps: int) -> None:
    """The run to compare with."""
    run = start(out, train_command(plan, num_processes, num_steps))
    assert run.wait() == 0, (out / "log").read_text()[-3000:]


def train_disturbed(
    plan: Path, out: Path, num_processes: int, num_steps: int, num_kills: int, seed: int
) -> list[Kill]:
    """The same run, with kills; restarts as many times."""
    run = start(out, train_command(plan, num_processes, num_steps, f"--max-restarts={num_kills}"))
    try:
        kills = disturb(run, out, num_processes, num_steps, num_kills, seed)
        assert run.wait() == 0, (out / "log").read_text()[-3000:]
        assert len(kills) == num_kills, f"the run was over after {len(kills)} kills"
        return kills
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGTERM)


def assert_same(alone: Path, disturbed: Path, num_steps: int) -> None:
    """Holds one run against the other.

    Raises:
        AssertionError: a step is lost or doubled, or a loss or a tensor of the last checkpoint differs.
    """
    expected, found = losses_of(alone), losses_of(disturbed)
    assert [step for step, _ in found] == list(range(num_steps)), "steps are lost or doubled"
    assert found == expected, "losses differ"
    last = f"step-{num_steps:06}"
    differing = differing_tensors(alone / last, disturbed / last)
    assert not differing, f"the last checkpoints differ in {differing[:5]}"


def main() -> None:
    """Prints every kill, then what was compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--processes", type=int, choices=sorted(PINS), default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        alone, disturbed = Path(folder, "alone"), Path(folder, "disturbed")
        plan = make_plan(Path(folder, "plan.yaml"), args.processes)
        train_undisturbed(plan, alone, args.processes, args.steps)
        kills = train_disturbed(plan, disturbed, args.processes, args.steps, args.kills, args.seed)
        assert_same(alone, disturbed, args.steps)
    for kill in kills:
        print(f"killed rank {kill.rank} after step {kill.after_step}, while {kill.where}")
    print(
        f"{len(kills)} kills over {args.steps} steps on {args.processes} processes in"
        f" {time.monotonic() - began_s:.0f} s: every loss and every tensor of the last checkpoint are those"
        " of a run left alone, bit for bit"
    )


if __name__ == "__main__":
    main()
