"""``verify``: processes of this machine against one process."""

import json
from pathlib import Path

import pytest

from autopar.cli.main import main
from tests.cli.conftest import GPT, SMALL

pytestmark = pytest.mark.slow


def test_verify_of_an_edited_plan(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    capsys.readouterr()
    assert main(["verify", str(plan_file), "--steps", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1 and document["ok"] is True and document["num_steps"] == 2
    assert document["worst_gradient_error"] <= 1e-9 and document["worst_loss_error"] <= 1e-9
    assert document["worst_parameter"]


def test_verify_of_a_model_plans_it_first(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--gpus", "2", "--batch", "4", "--set", "mesh.data=2", "--steps", "1", "--tolerance", "1e-30"]
    assert main(["verify", GPT, *SMALL, *flags]) == 6
    out, err = capsys.readouterr()
    assert out.startswith("DIFFERENT from one process: 1 steps, worst error of the loss ")
    assert "device: 2 x cpu (the default here)" in err
    assert "autopar: the parallel run and the single process disagree: gradient of '" in err


def test_verify_that_takes_too_long_says_so(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(plan_file), "--timeout", "0.5"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and "autopar: " in err
