"""Is training under a plan as fast, and as small, as what an expert writes by hand with PyTorch's own parts?

    python benchmarks/runtime.py [--only NAME ...] [--rounds N] [--json FILE]

Every row trains one model under one parallelism, once through ``autopar.parallelize`` and once through the
hand-written peer (``runtime_peers.py``), by gloo processes of this machine: with the same micro-batches, the
same cuts and shards, AdamW on both sides. For the time, both sides are built in the same processes and take
turns; for the memory, each runs alone, and the peak of resident memory while steps run is taken of the rank
that has most. A ratio below 1 is in autopar's favour. `busy` is the ratio of processor time over all ranks,
which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_ranks import Measured, RuntimeJob
from subjects import Subject

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.plan.decisions import Plan
from autopar.plan.read import parse_plan
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest
from autopar.units import MiB

_LIMIT_S = 600.0
_ALONE_ROUNDS = 3


@dataclass(frozen=True)
class Chain(Subject):
    """A model that is cut into stages.

    Attributes:
        chain: blocks that stages share; the parts before and after go with the ends.
    """

    before: tuple[str, ...]
    chain: tuple[str, ...]
    after: tuple[str, ...]

    def stages(self, num: int) -> list[list[str]]:
        """Block names of every stage, cut as the peers cut."""
        size = len(self.chain) // num
        stages = [list(self.chain[i * size : (i + 1) * size]) for i in range(num)]
        stages[0] = [*self.before, *stages[0]]
        stages[-1] = [*stages[-1], *self.after]
        return stages


def _transformer(n_layer: int, width: int, seq: int, vocab: int, batch: int) -> Chain:
    args = {"n_layer": n_layer, "width": width, "heads": width // 64, "seq": seq, "vocab": vocab}
    blocks = tuple(f"blocks.{i}" for i in range(n_layer))
    target = "benchmarks/models/transformer.py"
    return Chain(target, args, batch, ("wte", "wpe"), blocks, ("ln_f", "lm_head", "loss"))


SUBJECTS = {
    "small": _transformer(4, 256, 128, 4096, 16),
    "medium": _transformer(8, 512, 256, 8192, 8),
    "resnet": Chain(
        "examples/resnet.py",
        {"depth": 18, "width": 32, "num_classes": 100},
        32,
        ("stem",),
        tuple(f"stages.{i}.{j}" for i in range(4) for j in range(2)),
        ("head", "loss"),
    ),
}
_SPLIT = """
tensor: {wte: vocab, blocks.*.wq: column, blocks.*.wk: column, blocks.*.wv: column, blocks.*.fc: column,
  blocks.*.wo: row, blocks.*.proj: row, lm_head.weight: column, "*": replicate}
activations: {lm_head: shard(2), "*": replicate}
"""


@dataclass(frozen=True)
class Way:
    """A parallelism.

    Attributes:
        peer: maker of the hand-written side.
        pins: of the plan, as YAML.
        micro: micro-batches of a data rank.
        subjects: the models for which the peer is written.
    """

    peer: str
    mesh: tuple[int, int, int]
    pins: str = ""
    micro: int = 1
    subjects: tuple[str, ...] = tuple(SUBJECTS)


_TRANSFORMERS = ("small", "medium")
_NO_VOCABULARY = (
    _SPLIT.replace("wte: vocab, ", "")
    .replace("lm_head.weight: column, ", "")
    .replace("lm_head: shard(2), ", "")
)
WAYS = {
    "one process": Way("single", (1, 1, 1), "zero: 0"),
    "one process, compiled": Way("single_compiled", (1, 1, 1), "zero: 0\ncompile: true"),
    "DDP": Way("ddp", (1, 4, 1), "zero: 0"),
    "FSDP2": Way("fsdp2", (1, 4, 1), "zero: 3"),
    "parallelize_module": Way("tensor", (1, 1, 4), "zero: 0" + _SPLIT, subjects=_TRANSFORMERS),
    "pipelining": Way("pipeline", (4, 1, 1), "zero: 0", micro=4),
    "FSDP2 x parallelize_module": Way("data_tensor", (1, 2, 2), "zero: 3" + _SPLIT, subjects=_TRANSFORMERS),
    "pipelining x DDP": Way("pipeline_data", (2, 2, 1), "zero: 0", micro=4),
    "pipelining x parallelize_module": Way(
        "pipeline_tensor", (2, 1, 2), "zero: 0" + _NO_VOCABULARY, micro=4, subjects=_TRANSFORMERS
    ),
}


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    subject: str
    way: str
    autopar_s: list[float]
    peer_s: list[float]
    busy_ratio: float
    autopar_bytes: int
    peer_bytes: int

    @property
    def time_ratio(self) -> float:
        """Median of the ratios of neighbouring turns."""
        pairs = zip(self.autopar_s, self.peer_s, strict=True)
        return statistics.median(own / peer for own, peer in pairs)

    @property
    def memory_ratio(self) -> float:
        """Of the whole resident memory at its peak, Python and PyTorch included."""
        return self.autopar_bytes / self.peer_bytes


def plan_of(subject: Chain, way: Way) -> Plan:
    """The complete plan of a row: everything that matters is pinned as the peer has it."""
    pipeline, data, tensor = way.mesh
    stages = "\n".join(f"    - [{', '.join(stage)}]" for stage in subject.stages(pipeline))
    text = (
        f"batch: {{global: {subject.batch}, micro: {subject.batch // data // way.micro}}}\n"
        f"mesh: {{pipeline: {pipeline}, data: {data}, tensor: {tensor}}}\n"
        f"precision: fp32\npipeline:\n  schedule: 1f1b\n  virtual: 1\n  stages:\n{stages}\n"
        f"recompute: none\noffload: none\n{way.pins}\n"
    )
    source = subject.load()
    cluster = make_cluster(load_device("cpu"), 1, pipeline * data * tensor)
    request = PlanRequest(
        source, cluster, constraints=parse_plan(text, "<pins>"), top=1, with_baselines=False
    )
    return make_plan(request).plan


def measure(subject: Chain, way: Way, plan: Plan, sides: tuple[str, ...], rounds: int) -> Measured:
    """Runs one comparison in processes of its own."""
    num_ranks = way.mesh[0] * way.mesh[1] * way.mesh[2]
    job = RuntimeJob(subject.target, subject.args, way.peer, plan, sides, rounds)
    with tempfile.TemporaryDirectory(prefix="autopar-runtime-") as name:
        folder = Path(name)
        (folder / "job.pickle").write_bytes(pickle.dumps(job))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = dict(os.environ, OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR", CUDA_VISIBLE_DEVICES="")
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
        command = [sys.executable, str(Path(__file__).with_name("runtime_ranks.py")), name, str(os.getpid())]
        logs = [open(folder / f"log-{rank}", "w+") for rank in range(num_ranks)]  # noqa: SIM115
        processes = [
            subprocess.Popen(
                command,
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for rank, log in enumerate(logs)
        ]
        try:
            wait(processes)
        except RuntimeError as problem:
            texts = [(folder / f"log-{rank}").read_text()[-2000:] for rank in range(num_ranks)]
            raise RuntimeError(f"{problem}\n{max(texts, key=len)}") from problem
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            for log in logs:
                log.close()
        measured: Measured = pickle.loads((folder / "result.pickle").read_bytes())
        return measured


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended well.

    Raises:
        RuntimeError: one failed, or they took too long.
    """
    deadline_s = time.monotonic() + _LIMIT_S
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
        if failed:
            raise RuntimeError(f"rank {failed[0]} ended with status {processes[failed[0]].returncode}")
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not done after {_LIMIT_S:.0f} s")


def compare(subject_name: str, way_name: str, rounds: int) -> Result:
    """One row: time in alternation, memory of each side alone."""
    subject, way = SUBJECTS[subject_name], WAYS[way_name]
    plan = plan_of(subject, way)
    both = measure(subject, way, plan, ("autopar", "peer"), rounds)
    alone = {
        side: measure(subject, way, plan, (side,), min(rounds, _ALONE_ROUNDS)) for side in ("autopar", "peer")
    }
    return Result(
        subject_name,
        way_name,
        both.step_s["autopar"],
        both.step_s["peer"],
        statistics.median(both.busy_s["autopar"]) / statistics.median(both.busy_s["peer"]),
        alone["autopar"].peak_bytes["autopar"],
        alone["peer"].peak_bytes["peer"],
    )


def line(result: Result) -> str:
    """A row of the table."""
    return (
        f"{result.subject:8} {result.way:32} {statistics.median(result.autopar_s) * 1e3:9.1f}"
        f" {statistics.median(result.peer_s) * 1e3:9.1f} {result.time_ratio:7.3f}"
        f" {result.busy_ratio:7.3f}"
        f" {result.autopar_bytes / MiB:9.0f} {result.peer_bytes / MiB:9.0f} {result.memory_ratio:7.3f}"
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*SUBJECTS, *WAYS], default=[], help="models or ways")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side (default: 9)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    return parser.parse_args(arguments)


def main() -> int:
    """Prints the table; 1 where a side failed."""
    options = parse()
    wanted_subjects = [name for name in SUBJECTS if name in options.only] or list(SUBJECTS)
    wanted_ways = [name for name in WAYS if name in options.only] or list(WAYS)
    print(f"{'':41} step, ms: ours     peer   ratio    busy  MiB: ours      peer   ratio", flush=True)
    results: list[Result] = []
    status = 0
    for way in wanted_ways:
        for subject in wanted_subjects:
            if subject not in WAYS[way].subjects:
                continue
            try:
                results.append(compare(subject, way, options.rounds))
                print(line(results[-1]), flush=True)
            except RuntimeError as problem:
                status = 1
                print(f"{subject:8} {way:32} failed: {problem}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(document(results), indent=1))
    return status


def document(results: Sequence[Result]) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {
        "schema": 1,
        "rows": [
            {
                "subject": row.subject,
                "way": row.way,
                "autopar_s": row.autopar_s,
                "peer_s": row.peer_s,
                "time_ratio": row.time_ratio,
                "busy_ratio": row.busy_ratio,
                "autopar_bytes": row.autopar_bytes,
                "peer_bytes": row.peer_bytes,
                "memory_ratio": row.memory_ratio,
            }
            for row in results
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
