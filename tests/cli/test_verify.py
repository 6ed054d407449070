"""``verify``: processes of this machine against one process."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autopar.cli.main import main
from tests.cli.conftest import GPT, SMALL
from tests.cli.processes import descendants, ended

pytestmark = pytest.mark.slow  # and capfd, since processes write to the streams themselves


def test_verify_of_an_edited_plan(plan_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = plan_file.read_text()
    edits = [("blocks.0-1]\n    - [blocks.2-3", "blocks.0]\n    - [blocks.1-3"), ("micro: 4", "micro: 2")]
    edits += [("mlp.fc: column", "mlp.fc: replicate")] if "mlp.fc: column" in text else []
    edits += [("mlp.proj: row", "mlp.proj: replicate")] if "mlp.proj: row" in text else []
    edits += [("blocks.0-1: full", "blocks.1-2: full")]
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    plan_file.write_text(text)
    assert main(["check", str(plan_file), "-q"]) == 0
    capfd.readouterr()
    assert main(["verify", str(plan_file), "--steps", "2", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["schema"] == 1 and document["ok"] is True and document["num_steps"] == 2
    assert document["worst_gradient_error"] <= 1e-9 and document["worst_loss_error"] <= 1e-9
    assert document["worst_parameter"]


def test_verify_of_a_model_plans_it_first(capfd: pytest.CaptureFixture[str]) -> None:
    # Sums over two ranks are rounded otherwise than in one process: a difference, if nothing is tolerated.
    flags = ["--gpus", "2", "--batch", "4", "--steps", "1", "--tolerance", "1e-30"]
    pins = ["--set", "mesh.tensor=2", "--set", "tensor.blocks.*.attn.qkv=column"]
    assert main(["verify", GPT, *SMALL, *flags, *pins]) == 6
    out, err = capfd.readouterr()
    assert out.startswith("DIFFERENT from one process: 1 steps, worst error of the loss ")
    assert "device: 2 x cpu (the default here)" in err
    assert "autopar: the parallel run and the single process disagree: gradient of '" in err


def test_the_ranks_of_a_killed_verify_end() -> None:
    command = [sys.executable, "-m", "autopar.cli", "verify", GPT, *SMALL, "--gpus", "2", "--batch", "4"]
    with subprocess.Popen([*command, "--steps", "100000"], stderr=subprocess.DEVNULL) as process:
        while len(started := descendants(process.pid)) < 3:  # the job and its ranks
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert ended(started, within_s=10)
