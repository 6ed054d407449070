"""How good is the plan that the planner chooses, on a machine where every plan can be measured?

Profiles this machine as a cluster of 4 processes (``autopar profile``), plans three small models for it, then
trains under every feasible plan of the sweep mesh x micro-batch, each completed by the planner, and compares
measured with predicted step times: their rank correlation (Spearman), and how much slower the plan chosen is
than the best measured (regret).

    python benchmarks/regret.py                       # some 20 minutes on 2 quiet cores
    python benchmarks/regret.py --models gpt --repetitions 3 --keep-profile here.yaml --json gpt.json
    python benchmarks/regret.py --device here.yaml --resume gpt.json --json gpt.json  # further rounds

A machine that is quiet for minutes only is measured in pieces: each resumes what the ones before measured.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from regret_outcome import Earlier, Outcome, Row, document, read_earlier, report
from regret_ranks import PRODUCT_EDGE, Measured, RegretJob, whereabouts
from subjects import Subject

from autopar.capture.capture import Capture, capture
from autopar.capture.target import ModelSource
from autopar.cli.models_to_time import model_to_time
from autopar.cost.blocks import Readings
from autopar.cost.prediction import Prediction
from autopar.errors import AutoparError
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.hardware.device import Device
from autopar.hardware.read_device import read_device
from autopar.plan.decisions import Mesh, Plan
from autopar.planner.check import predict_plan
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest
from autopar.profile.cost_model import cost_model_text
from autopar.profile.machine import num_cores
from autopar.profile.run import run_profile
from autopar.profile.settings import ProfileSettings

# The capture, seconds, on top of the rounds.
_SETUP_S = 400.0


SUBJECTS = {
    "gpt": Subject(
        "examples/gpt.py", {"n_layer": 4, "n_embd": 256, "n_head": 4, "seq": 64, "vocab": 2048}, 16
    ),
    "resnet": Subject(
        "examples/resnet.py", {"depth": 18, "width": 32, "image_size": 64, "num_classes": 100}, 32
    ),
    "recommender": Subject(
        "examples/recommender.py", {"num_users": 100_000, "num_items": 50_000, "dim": 64}, 4096
    ),
}


def micro_batches(batch: int, data: int, most: int) -> list[int]:
    """Micro-batch sizes that split a data rank's share into a power of two of at most ``most`` pieces."""
    counts = [2**i for i in range(most.bit_length()) if 2**i <= most]
    return [batch // data // n for n in counts if batch % (data * n) == 0]


def sweep(
    subject: Subject, source: ModelSource, captured: Capture, cluster: Cluster, most: int
) -> tuple[list[tuple[Plan, Prediction]], list[str]]:
    """Every feasible plan with mesh and micro-batch pinned; and why others are not."""
    found, refused = [], []
    num = cluster.num_devices
    degrees = [n for n in range(1, num + 1) if num % n == 0]
    meshes = [(p, d, num // p // d) for p in degrees for d in degrees if num % (p * d) == 0]
    for pipeline, data, tensor in meshes:
        for size in micro_batches(subject.batch, data, most):
            pins = Plan(mesh=Mesh(pipeline, data, tensor), micro_batch=size)
            try:
                plan, prediction = complete(pins, subject, source, captured, cluster)
            except AutoparError as problem:
                refused.append(f"{pipeline} x {data} x {tensor}, micro-batch {size}: {str(problem)[:120]}")
                continue
            found.append((plan, prediction))
    return found, refused


def complete(
    pins: Plan, subject: Subject, source: ModelSource, captured: Capture, cluster: Cluster
) -> tuple[Plan, Prediction]:
    """The planner's best plan within the pins."""
    request = PlanRequest(source, cluster, global_batch=subject.batch, constraints=pins, top=1)
    result = make_plan(request, captured=captured)
    return result.plan, result.prediction


@dataclass(frozen=True)
class Planned:
    """The plans of a model.

    Attributes:
        chosen: index of the one that the planner chose.
        refused: why other meshes and micro-batches have none.
    """

    plans: tuple[Plan, ...]
    predictions: tuple[Prediction, ...]
    chosen: int
    refused: tuple[str, ...]


def plan_all(
    subject: Subject, source: ModelSource, captured: Capture, cluster: Cluster, most: int
) -> Planned:
    """The sweep and what the planner chooses, which the sweep may lack for its schedule or micro-batch."""
    planned, refused = sweep(subject, source, captured, cluster, most)
    chosen = complete(Plan(), subject, source, captured, cluster)
    index = next((i for i, (plan, _) in enumerate(planned) if plan == chosen[0]), len(planned))
    if index == len(planned):
        planned.append(chosen)
    return Planned(tuple(p for p, _ in planned), tuple(p for _, p in planned), index, tuple(refused))


def predict_again(earlier: Earlier, captured: Capture, cluster: Cluster) -> Planned:
    """Plans of an earlier run, as the cost model is now."""
    readings = Readings(cluster)
    predictions = tuple(
        predict_plan(plan, captured.at(plan.micro_batch or 1), cluster, cluster.device.memory_bytes, readings)
        for plan in earlier.plans
    )
    return Planned(earlier.plans, predictions, earlier.chosen, earlier.refused)


def evaluate(
    name: str, subject: Subject, cluster: Cluster, options: argparse.Namespace, earlier: Earlier | None
) -> Outcome:
    """Plans and measures one model, or measures the plans of an earlier run once more."""
    source = subject.load()
    captured = capture(source, torch.float32)
    began_s = time.monotonic()
    if earlier is None:
        found = plan_all(subject, source, captured, cluster, options.micro_batches)
    else:
        found = predict_again(earlier, captured, cluster)
    tell(f"{name}: {len(found.plans)} plans made in {time.monotonic() - began_s:.0f} s")
    measured: dict[int, list[float]] = {}
    speed = None
    if options.repetitions:
        result = measure(name, subject, found.plans, options)
        measured, speed = result.steps_s, speed_since_profile(cluster.device, result)
    rows = tuple(
        Row(plan, prediction, (*(earlier.measured_s[i] if earlier else ()), *measured.get(i, ())))
        for i, (plan, prediction) in enumerate(zip(found.plans, found.predictions, strict=True))
    )
    return Outcome(name, rows, rows[found.chosen], found.refused, speed)


def speed_since_profile(device: Device, measured: Measured) -> float:
    """How many times as fast as in the profile the machine multiplied while steps were measured."""
    thought_s = 2 * PRODUCT_EDGE**3 / device.matmul_flops_per_s("fp32", PRODUCT_EDGE, PRODUCT_EDGE)
    return thought_s / statistics.median(measured.products_s)


def measure(
    name: str,
    subject: Subject,
    plans: Sequence[Plan],
    options: argparse.Namespace,
) -> Measured:
    """Seconds of steps of every plan, from a group of processes that is ended if it takes too long."""
    job = RegretJob(
        target=subject.target,
        args=subject.args,
        plans=tuple(plans),
        num_rounds=options.repetitions,
        wanted_s=options.seconds,
        timeout_s=120.0,
    )
    limit_s = 4 * options.seconds + _SETUP_S
    with tempfile.TemporaryDirectory(prefix="autopar-regret-") as folder_name:
        folder = Path(folder_name)
        (folder / "job.pickle").write_bytes(pickle.dumps(job))
        run_in_time([str(Path(__file__).with_name("regret_ranks.py")), str(folder)], folder, limit_s, name)
        failures = sorted(folder.glob("error-*.pickle"))
        if failures:
            first = pickle.loads(failures[0].read_bytes())
            raise RuntimeError(f"{name}: {first.message}\n{first.trace}\n{whereabouts(folder)}")
        measured: Measured = pickle.loads((folder / "result.pickle").read_bytes())
        return measured


def run_in_time(command: Sequence[str], folder: Path, limit_s: float, name: str) -> None:
    """Runs a script with all that it starts, tells how far it is, and ends it after ``limit_s``."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR", CUDA_VISIBLE_DEVICES="")
    process = subprocess.Popen(
        [sys.executable, *command, str(os.getpid())], env=environment, stdout=2, start_new_session=True
    )
    told, deadline_s = "", time.monotonic() + limit_s
    try:
        while process.poll() is None:
            time.sleep(0.2)
            progress = folder / "progress-0"
            at = progress.read_text().partition(" of ")[0] if progress.exists() else ""
            if at != told and at.startswith("round"):
                told = at
                tell(f"{name}: {at}")
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{name}: not done after {limit_s:.0f} s; {whereabouts(folder)}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def profiled(options: argparse.Namespace) -> str:
    """Path of the cost model: the one given, or a profile of this machine with the models' blocks."""
    if options.device is not None:
        return str(options.device)
    models = []
    for name in options.models:
        subject = SUBJECTS[name]
        degrees = [n for n in range(1, options.processes + 1) if options.processes % n == 0]
        sizes = {size for d in degrees for size in micro_batches(subject.batch, d, options.micro_batches)}
        axes = [n for n in degrees if n > 1]
        models.append(model_to_time(subject.target, subject.args, sorted(sizes), axes, load_device("cpu")))
    settings = ProfileSettings(options.processes, quick=options.quick, models=tuple(models), timeout_s=900.0)
    result = run_profile(settings, tell)
    path = Path(
        options.keep_profile or Path(tempfile.mkdtemp(prefix="autopar-regret-")) / "this-machine.yaml"
    )
    path.write_text(cost_model_text(result, "this-machine"))
    tell(f"profiled in {result.elapsed_s:.0f} s: {path}")
    return str(path)


def tell(text: str) -> None:
    """Progress, to stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument(
        "--repetitions",
        type=int,
        default=7,
        help="rounds, time permitting (default: 7); 0 with --resume: predict again what was measured",
    )
    parser.add_argument("--seconds", type=float, default=270.0, help="of rounds, a model (default: 270)")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=16, help="most of them in a step (default: 16)")
    parser.add_argument("--device", help="a cost model to plan with (default: profile this machine)")
    parser.add_argument("--keep-profile", metavar="FILE", help="where the profile goes")
    parser.add_argument("--quick", action="store_true", help="profile in little time")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="what --json wrote: measure the same plans again, and count the rounds of both; wants --device,"
        " the cost model that they were planned with",
    )
    options = parser.parse_args(arguments)
    if options.resume and not options.device:
        parser.error("--resume measures plans that were made already: name their cost model with --device")
    if options.repetitions < 1 and not options.resume:
        parser.error("--repetitions 0 measures nothing: give --resume FILE with what was measured before")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table for each model; a model that fails is told and left out."""
    options = parse(arguments)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    if load > 0.5 * num_cores():
        tell(f"the machine is busy (load {load:.1f} on {num_cores()} cores): measurements will be noisy")
    earlier = read_earlier(Path(options.resume)) if options.resume else {}
    others = json.loads(Path(options.resume).read_text())["models"] if options.resume else {}
    if earlier:
        options.models = [name for name in options.models if name in earlier]
    device = profiled(options)
    cluster = make_cluster(read_device(device), 1, options.processes)
    outcomes = []
    failed = False
    for name in options.models:
        try:
            outcomes.append(evaluate(name, SUBJECTS[name], cluster, options, earlier.get(name)))
        except (AutoparError, RuntimeError, TimeoutError) as problem:
            failed = True
            tell(f"{name} failed: {problem}")
            continue
        print(report(outcomes[-1]), end="\n\n", flush=True)
        if options.json:  # after each model: a long run that is broken off leaves what it has
            Path(options.json).write_text(
                json.dumps(document(outcomes, device, load, others), indent=1) + "\n"
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
