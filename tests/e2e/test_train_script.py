"""``examples/train.py`` under torchrun: one process's losses, and runs that go on under other plans."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autopar.capture.target import load_target
from autopar.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "examples" / "train.py")
SMALL = [x for n in ("n_layer=2", "n_embd=32", "n_head=4", "seq=16", "vocab=64") for x in ("--arg", n)]


def plan(path: Path, *pins: str, batch: int = 8) -> Path:
    target = str(ROOT / "examples" / "gpt.py")
    flags = ["--gpus", "2", "--device", "cpu", "--batch", str(batch), "-q", "-o", str(path)]
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
    losses.with_suffix(".err").write_text(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[float] = json.loads(losses.read_text())
    return found


@pytest.mark.slow
def test_losses_are_those_of_one_process_and_survive_a_change_of_plan(tmp_path: Path) -> None:
    pipeline = plan(tmp_path / "pipeline.yaml", "mesh.pipeline=2")
    data = plan(tmp_path / "data.yaml", "mesh.data=2", "zero=3")
    single = train(pipeline, tmp_path / "single.json", "--single", "--steps", "6")
    out = ("--out", str(tmp_path / "out"), "--save-every", "2")
    first = train(pipeline, tmp_path / "first.json", "--steps", "3", *out)
    rest = train(data, tmp_path / "rest.json", "--steps", "6", *out)
    assert "going on after 3 steps, from" in (tmp_path / "rest.err").read_text()
    assert [*first, *rest] == pytest.approx(single, rel=1e-5)
    assert single[-1] < single[0]
    kept = [json.loads(line) for line in (tmp_path / "out" / "losses.jsonl").read_text().splitlines()]
    assert kept == [{"step": step, "loss": loss} for step, loss in enumerate([*first, *rest])]
    assert sorted(x.name for x in (tmp_path / "out").glob("step-*")) == ["step-000004", "step-000006"]
    other_batch = plan(tmp_path / "other.yaml", "mesh.data=2", batch=4)
    with pytest.raises(
        AssertionError, match="has 8 samples a step, and the plan 4; plan again with --batch 8"
    ):
        train(other_batch, tmp_path / "losses.json", "--steps", "9", *out)


@pytest.fixture(scope="module")
def script() -> Any:
    specification = importlib.util.spec_from_file_location("train", TRAIN)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_epoch_sees_each_sample_once_in_an_order_of_its_own(script: Any) -> None:
    source = load_target(str(ROOT / "examples" / "gpt.py"), {"seq": 4, "vocab": 64})
    samples = script.Samples(source, num_samples=12, batch_size=4, seed=0)
    epochs = [torch.cat([samples.numbers_of_step(step) for step in range(e, e + 3)]) for e in (0, 3, 6)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(12))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    again = script.Samples(source, num_samples=12, batch_size=4, seed=0)
    assert torch.equal(samples.of_step(7)["labels"], again.of_step(7)["labels"])


@pytest.mark.parametrize("first_step", [0, 2, 5])
def test_losses_after_the_checkpoint_are_dropped_and_those_before_it_stay(
    script: Any, tmp_path: Path, first_step: int
) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(5)]
    (tmp_path / "losses.jsonl").write_text("\n".join([*lines, '{"step": 5, "lo']))
    progress = script.Progress(tmp_path, first_step, batch_size=4, log_every=10)
    progress.note(first_step, torch.tensor(2.0))
    kept = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == list(range(first_step + 1))
    assert kept[-1]["loss"] == 2.0


@pytest.mark.slow
def test_wrong_number_of_processes_is_an_error_that_says_how_to_start(tmp_path: Path) -> None:
    pipeline = plan(tmp_path / "pipeline.yaml", "mesh.pipeline=2")
    with pytest.raises(AssertionError, match=r"the plan is for 2 processes .*torchrun --nproc-per-node 2"):
        train(pipeline, tmp_path / "losses.json", "--steps", "1", processes=1)
