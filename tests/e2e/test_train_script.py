"""``examples/train.py`` under torchrun: one process's losses, and checkpoints that load under other plans."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autopar.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "examples" / "train.py")
SMALL = [x for n in ("n_layer=2", "n_embd=32", "n_head=4", "seq=16", "vocab=64") for x in ("--arg", n)]

pytestmark = pytest.mark.slow


def plan(path: Path, *pins: str) -> Path:
    target = str(ROOT / "examples" / "gpt.py")
    flags = ["--gpus", "2", "--device", "cpu", "--batch", "8", "-q", "-o", str(path)]
    assert main(["plan", target, *SMALL, *flags, *(x for pin in pins for x in ("--set", pin))]) == 0
    return path


def train(plan_file: Path, losses: Path, *flags: str, processes: int = 2) -> list[float]:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    start = [sys.executable] if "--single" in flags else torchrun
    done = subprocess.run(
        [*start, TRAIN, str(plan_file), "--losses", str(losses), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[float] = json.loads(losses.read_text())
    return found


def test_losses_are_those_of_one_process_and_survive_a_change_of_plan(tmp_path: Path) -> None:
    pipeline = plan(tmp_path / "pipeline.yaml", "mesh.pipeline=2")
    data = plan(tmp_path / "data.yaml", "mesh.data=2", "zero=3")
    single = train(pipeline, tmp_path / "single.json", "--single", "--steps", "6")
    checkpoint = str(tmp_path / "checkpoint")
    first = train(pipeline, tmp_path / "first.json", "--steps", "3", "--save", checkpoint)
    rest = train(data, tmp_path / "rest.json", "--steps", "3", "--load", checkpoint)
    assert [*first, *rest] == pytest.approx(single, rel=1e-5)
    assert single[-1] < single[0]


def test_wrong_number_of_processes_is_an_error_that_says_how_to_start(tmp_path: Path) -> None:
    pipeline = plan(tmp_path / "pipeline.yaml", "mesh.pipeline=2")
    with pytest.raises(AssertionError, match=r"the plan is for 2 processes .*torchrun --nproc-per-node 2"):
        train(pipeline, tmp_path / "losses.json", "--steps", "1", processes=1)
