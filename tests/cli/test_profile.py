"""``autopar profile``: what it refuses, what it writes, and that it leaves nothing behind when it fails."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autopar.cli.main import main
from autopar.hardware.catalog import load_device
from autopar.hardware.link import CollectiveKind
from tests.cli.processes import descendants, ended

ROOT = Path(__file__).resolve().parents[2]
GPT = str(ROOT / "examples" / "gpt.py")
SMALL = [x for n in ("n_layer=2", "n_embd=32", "n_head=2", "seq=16", "vocab=64") for x in ("--arg", n)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "nope.py"], "there is no file 'nope.py'"),
        (["--micro", "2"], "--micro is about the blocks of a model; name it with --model"),
        (["--arg", "n_layer=2"], "--arg is about the blocks of a model"),
        (["-o", "/nonexistent/here.yaml"], "there is no folder '/nonexistent'"),
        (["-o", "here.txt"], "a cost model is a .yaml file"),
        (["--processes", "0"], "'0' is not a whole number of at least 1"),
        (["--device", "cpu", "--processes", "1000"], "at most 64 processes; ask for fewer"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--model", GPT, "--arg", "n_layers=2"], "n_layers"),
    ],
)
def test_bad_arguments_are_usage_errors(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err


@pytest.mark.slow
def test_profile_of_two_processes_is_a_device_to_plan_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "here.yaml"
    flags = ["--quick", "--device", "cpu", "--processes", "2", "-o", str(path), "-q"]
    assert main(["profile", *flags, "--model", GPT, *SMALL, "--micro", "2"]) == 0
    assert f"cost model written to {path}" in capsys.readouterr().out
    device = load_device(str(path))
    assert device.name == "here" and device.default_devices_per_node == 2
    assert all(device.matmul_flops_per_s("fp32", edge, edge) > 0 for edge in (32, 128, 512))
    # Tiny products are dominated by what a call costs.
    assert device.matmul_flops_per_s("fp32", 512, 512) > 2 * device.matmul_flops_per_s("fp32", 16, 16)
    for kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER, CollectiveKind.ALL_TO_ALL):
        # On a busy machine a collective of 64 bytes may take as long as one of 16 MiB.
        assert all(device.intra_node.collective_s(kind, n, 2, 2) > 0 for n in (64, 2**24))
    assert len(device.blocks) == 6  # embeddings, a block class, norm, head, loss
    assert all(b.forward_s > 0 and b.backward_s > 0 for b in device.blocks.values())

    plan = tmp_path / "plan.yaml"
    where = ["--device", str(path), "--gpus", "2"]
    assert main(["plan", GPT, *SMALL, *where, "--batch", "4", "--set", "batch.micro=2", "-o", str(plan)]) == 0
    assert "blocks were measured" in capsys.readouterr().err
    assert main(["check", str(plan)]) == 0
    assert "note: times of all of" in capsys.readouterr().err


@pytest.mark.slow
def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--quick", "--device", "cpu", "--processes", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1 and document["file"] is None
    assert document["device"]["compute"]["peak"]["fp32"]["value"] > 0


@pytest.mark.slow
def test_interrupted_profile_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "here.yaml"
    command = [sys.executable, "-m", "autopar.cli", "profile", "--device", "cpu", "-o", str(path)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts the tests in the background has them ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "compute" in line:
                break
        children = descendants(process.pid)
        assert children
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert list(tmp_path.iterdir()) == []
    assert ended(children, within_s=30), "ranks outlive the profile"


@pytest.mark.slow
def test_a_profile_that_takes_too_long_says_where_its_ranks_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "here.yaml"
    path.write_text("what was there before\n")
    flags = ["--quick", "--device", "cpu", "--processes", "2", "--timeout", "2", "-o", str(path)]
    assert main(["profile", *flags]) == 1
    err = capsys.readouterr().err
    assert ("did not finish within 2" in err and "it was" in err) or "rank 0 was at" in err
    assert path.read_text() == "what was there before\n"
