"""How long planning takes, and how it grows with the number of layers.

    python benchmarks/planning.py [--only NAME ...] [--repeat N] [--json FILE]

Each row is planned in a process of its own, for its peak memory. Everything is counted but Python's imports:
loading the model file, building and capturing the model, the tables of its blocks, the search with its
runners-up and baselines, and writing the plan. The second table plans a model and the same model with four
times the layers, three times in turns, and compares the medians; the time may grow by a half.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GPT = "examples/gpt.py"
LLAMA = "examples/hf/llama"
_ROW_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Row:
    """One planning problem.

    Attributes:
        target_s: seconds that it may take in all on two cores; None where only growth is looked at.
    """

    name: str
    target: str
    device: str
    num_devices: int
    global_batch: int
    args: Mapping[str, str | int] = field(default_factory=dict)
    target_s: float | None = None


_GPT3 = {"n_layer": 96, "n_embd": 12288, "n_head": 96, "seq": 2048}
_TRILLION = {"n_layer": 128, "n_embd": 25600, "n_head": 160, "seq": 2048}
_LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "seq": 8192,
}
_T5_11B = {"d_model": 1024, "d_ff": 65536, "d_kv": 128, "num_heads": 128, "num_layers": 24}

ROWS = (
    Row("GPT-2 124M", GPT, "h100-sxm-80gb", 8, 256, target_s=3),
    Row("Llama-3-8B", LLAMA, "h100-sxm-80gb", 64, 256, {"seq": 8192}, target_s=8),
    Row("Llama-3-70B", LLAMA, "h100-sxm-80gb", 256, 512, _LLAMA_70B, target_s=12),
    Row("GPT-3 175B", GPT, "a100-sxm-80gb", 1024, 1536, _GPT3, target_s=15),
    Row("GPT 1T", GPT, "a100-sxm-80gb", 3072, 3072, _TRILLION, target_s=30),
    Row("GPT 1T, 16,384", GPT, "a100-sxm-80gb", 16384, 16384, _TRILLION, target_s=30),
    Row(
        "ResNet-152",
        "examples/hf/resnet",
        "v100-sxm-32gb",
        32,
        2048,
        {"depths": "[3, 8, 36, 3]"},
        target_s=15,
    ),
    Row(
        "T5-11B",
        "examples/hf/t5",
        "a100-sxm-80gb",
        64,
        512,
        {**_T5_11B, "num_decoder_layers": 24},
        target_s=15,
    ),
    Row("Mixtral-8x7B", "examples/hf/mixtral", "h100-sxm-80gb", 64, 512, {"seq": 4096}, target_s=15),
)


def _deep_gpt(num_layers: int) -> Row:
    args = {"n_layer": num_layers, "n_embd": 4096, "n_head": 32, "seq": 2048}
    return Row(f"GPT {num_layers} layers", GPT, "a100-sxm-80gb", 64, 512, args)


def _deep_llama(num_layers: int) -> Row:
    return Row(
        f"Llama {num_layers} layers",
        LLAMA,
        "h100-sxm-80gb",
        64,
        256,
        {"seq": 4096, "num_hidden_layers": num_layers},
    )


GROWTH = ((_deep_gpt(16), _deep_gpt(64)), (_deep_llama(24), _deep_llama(96)))
GROWTH_TARGET = 1.5
# A ratio of two single runs says little on a machine whose speed changes.
_FEWEST_OF_GROWTH = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """What planning one row took."""

    name: str
    num_devices: int
    import_s: float
    capture_s: float
    solve_s: float
    total_s: float
    peak_rss_bytes: int
    status: str
    gap: float
    mesh: str
    step_time_s: float


def plan_row(row: Row) -> Measured:
    """Plans a row in this process."""
    started = time.perf_counter()
    _import_everything(row)
    imported = time.perf_counter()

    from autopar.capture.target import load_target
    from autopar.cli.collection import collect_seldom
    from autopar.hardware.catalog import load_device
    from autopar.hardware.cluster import cluster_of
    from autopar.plan.decisions import Plan
    from autopar.plan.write import write_plan
    from autopar.planner.planner import make_plan
    from autopar.planner.request import PlanRequest

    collect_seldom()  # as the command line does
    cluster = cluster_of(load_device(row.device), row.num_devices)
    source = load_target(str(ROOT / row.target), row.args)
    result = make_plan(PlanRequest(source, cluster, global_batch=row.global_batch, constraints=Plan()))
    write_plan(result.plan)
    total_s = time.perf_counter() - imported
    mesh, search = result.plan.mesh, result.search
    return Measured(
        name=row.name,
        num_devices=row.num_devices,
        import_s=imported - started,
        capture_s=search.capture_s,
        solve_s=search.solve_s,
        total_s=total_s,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        status=result.status,
        gap=result.gap,
        mesh=f"{mesh.pipeline} x {mesh.data} x {mesh.tensor}",
        step_time_s=result.prediction.step_time_s,
    )


def _import_everything(row: Row) -> None:
    import networkx
    import numpy
    import ortools.linear_solver.pywraplp
    import ortools.sat.python.cp_model
    import sympy
    import torch._dynamo  # what torch.export imports when it is first called
    import torch.export._trace
    import yaml

    import autopar.planner.planner

    loaded = [networkx, numpy, ortools, sympy, torch, yaml, autopar]
    if "/hf/" in row.target:
        import transformers

        config = json.loads((ROOT / row.target / "config.json").read_text())
        kind = config["model_type"]
        loaded.append(transformers.AutoConfig)
        loaded.append(importlib.import_module(f"transformers.models.{kind}.modeling_{kind}"))
    assert all(loaded)


def measure(rows: Sequence[Row], repeat: int) -> list[Measured]:
    """Plans rows in fresh processes, one after the other in turns; of each the repetition of median total
    time.

    Raises:
        SystemExit: planning failed; its output is shown.
    """
    found: list[list[Measured]] = [[] for _ in rows]
    for _ in range(repeat):
        for row, own in zip(rows, found, strict=True):
            own.append(_measure_once(row))
    return [sorted(own, key=lambda measured: measured.total_s)[len(own) // 2] for own in found]


def _measure_once(row: Row) -> Measured:
    command = [sys.executable, __file__, "--row", json.dumps(asdict(row))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=_ROW_TIMEOUT_S, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{row.name} failed:\n{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="rows whose name has this"
    )
    parser.add_argument("--repeat", type=int, default=1, help="runs of each row; the median is shown")
    parser.add_argument("--json", metavar="FILE", help="where to write the figures as well")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(asdict(plan_row(Row(**json.loads(options.row))))))
        return

    def wanted(row: Row) -> bool:
        return not options.only or any(part.lower() in row.name.lower() for part in options.only)

    rows = [row for row in ROWS if wanted(row)]
    figures = _print_rows(rows, options.repeat)
    growth = _print_growth([pair for pair in GROWTH if wanted(pair[0])], options.repeat)
    if options.json:
        document = {"rows": [asdict(m) for m in figures], "growth": growth}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _print_rows(rows: Sequence[Row], repeat: int) -> list[Measured]:
    figures = []
    if rows:
        print(
            "| model · devices | capture s | solve s | total s | target s | RSS MiB | status | gap | mesh |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | --- |")
    for row in rows:
        (m,) = measure([row], repeat)
        figures.append(m)
        print(
            f"| {m.name} · {m.num_devices} {row.device} | {m.capture_s:.1f} | {m.solve_s:.1f} "
            f"| {m.total_s:.1f} | {row.target_s:g} | {m.peak_rss_bytes / 2**20:.0f} "
            f"| {m.status} | {m.gap:.2%} | {m.mesh} |",
            flush=True,
        )
    return figures


def _print_growth(pairs: Sequence[tuple[Row, Row]], repeat: int) -> list[dict[str, float | str]]:
    figures: list[dict[str, float | str]] = []
    if pairs:
        print("\n| model | total s | four times the layers, total s | ratio | target |")
        print("| --- | ---: | ---: | ---: | ---: |")
    for small, large in pairs:
        few, many = measure([small, large], max(repeat, _FEWEST_OF_GROWTH))
        ratio = many.total_s / few.total_s
        figures.append({"small": few.name, "large": many.name, "ratio": ratio})
        print(
            f"| {few.name} → {many.name} | {few.total_s:.1f} | {many.total_s:.1f} | {ratio:.2f} "
            f"| {GROWTH_TARGET} |",
            flush=True,
        )
    return figures


if __name__ == "__main__":
    main()
