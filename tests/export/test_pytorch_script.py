"""The exported script runs under torchrun, and a split model gives the loss of a whole one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autopar.export.pytorch_script import to_pytorch
from tests.export.subjects import ANYWHERE, LLAMA_PLAN, subject

ALWAYS = ["mesh.tensor=1", "zero=0", "precision=fp32", "batch.global=8"]
ONE = [*ALWAYS, "mesh.pipeline=1", "mesh.data=1"]
WHOLE = "pipeline.stages=[[wte, wpe, blocks.0-3, ln_f, lm_head, loss]]"
FOUR = "pipeline.stages=[[wte, wpe, blocks.0], [blocks.1], [blocks.2], [blocks.3, ln_f, lm_head, loss]]"


def losses(folder: Path, num_ranks: int, *changes: str, text: str = ANYWHERE) -> list[float]:
    script = folder / f"script{num_ranks}.py"
    script.write_text(to_pytorch(subject(*changes, text=text)).text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    environment = dict(
        os.environ, OMP_NUM_THREADS="1", STEPS="3", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES=""
    )
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [float(loss) for loss in re.findall(r"^step \d+ loss ([\d.]+)", done.stdout, re.MULTILINE)]
    assert len(found) == 3
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(["mesh.pipeline=2", "recompute=full"], id="1f1b, recompute"),
        pytest.param(
            ["mesh.pipeline=2", "pipeline.schedule=interleaved", "pipeline.virtual=2", FOUR], id="interleaved"
        ),
    ],
)
def test_a_pipeline_gives_the_losses_of_one_process(tmp_path: Path, changes: list[str]) -> None:
    one = losses(tmp_path, 1, *ONE, WHOLE)
    assert losses(tmp_path, 2, *ALWAYS, "mesh.data=1", *changes) == pytest.approx(one, abs=2e-4)


@pytest.mark.slow
def test_tensor_parallelism_gives_the_losses_of_one_process(tmp_path: Path) -> None:
    one = losses(tmp_path, 1, "mesh.tensor=1", text=LLAMA_PLAN)
    assert losses(tmp_path, 2, text=LLAMA_PLAN) == pytest.approx(one, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["0", "3"])
def test_data_parallelism_runs(tmp_path: Path, zero: str) -> None:
    changes = ["mesh.tensor=1", "precision=fp32", "mesh.pipeline=1", WHOLE, f"zero={zero}"]
    found = losses(tmp_path, 2, *changes)
    assert all(3.5 < loss < 4.8 for loss in found)  # about log(64): random tokens of a vocabulary of 64
