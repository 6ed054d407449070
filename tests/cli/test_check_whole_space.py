"""``check`` over the newer decisions: schedules, order of the mesh, offload, and the cluster of a plan."""

import json
from pathlib import Path

import pytest

from autopar.cli.main import main
from tests.cli.conftest import GPT, SMALL

FOUR_STAGES = """\
    - [wte, wpe, blocks.0]
    - [blocks.1]
    - [blocks.2]
    - [blocks.3, ln_f, lm_head, loss]
"""


@pytest.fixture
def four_stages(plan_file: Path) -> Path:
    """The plan with four stages on its two ranks of the pipeline."""
    head, _, rest = plan_file.read_text().partition("    - [wte")
    head = head.replace("schedule: 1f1b", "schedule: interleaved").replace("virtual: 1", "virtual: 2")
    plan_file.write_text(head + FOUR_STAGES + rest[rest.index("tensor:") :])
    return plan_file


def predicted(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    status = main(["check", *flags, "--json", "-q"])
    out, err = capsys.readouterr()
    assert status == 0, err
    document: dict[str, object] = json.loads(out)["predicted"]
    return document


def test_every_schedule_of_a_plan_is_costed(four_stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for schedule in ("interleaved", "zbv"):
        flags = [str(four_stages), "--set", f"pipeline.schedule={schedule}"]
        stages = predicted(capsys, *flags)["stages"]
        assert isinstance(stages, list) and len(stages) == 2
    assert main(["check", *flags]) == 0
    out, _ = capsys.readouterr()
    assert "bf16; zbv; 2 stages a rank" in out or "fp32; zbv; 2 stages a rank" in out
    assert "wte, wpe, blocks.0 | blocks.3," in " ".join(out.split())
    assert main(["check", str(four_stages), "--set", "pipeline.virtual=1"]) == 4
    assert (
        "schedule interleaved runs several stages on each rank, but virtual is 1" in capsys.readouterr().err
    )
    assert main(["check", str(four_stages), "--set", "pipeline.schedule=1f1b"]) == 4
    assert "schedule 1f1b runs one stage on each rank, but virtual is 2" in capsys.readouterr().err


def test_what_ifs_of_order_and_offload(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(plan_file), "--device", "a100-sxm-80gb", "--gpus", "4", "--gpus-per-node", "2"]
    usual = predicted(capsys, *flags)
    # Tensor collectives cross nodes now, and messages between the two stages do not.
    turned = predicted(capsys, *flags, "--set", "mesh.order=data,tensor,pipeline")
    assert turned["step_time_s"] != usual["step_time_s"]
    assert turned["peak_memory_bytes"] == usual["peak_memory_bytes"]
    away = predicted(capsys, *flags, "--set", "offload=optimizer")
    assert away["peak_memory_bytes"] < usual["peak_memory_bytes"]  # type: ignore[operator]
    assert main(["check", *flags, "--set", "offload=[optimizer, activations]"]) == 0
    out, _ = capsys.readouterr()
    assert "; optimizer and activations offloaded" in out and "on the host" in out
    assert main(["check", *flags, "--set", "offload=parameters"]) == 4
    assert "offload of parameters needs zero: 3" in capsys.readouterr().err


def test_a_plan_for_a_cluster_file_is_checked_by_its_links_and_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.yaml").write_text(
        "version: 1\ndevice: a100-sxm-80gb\nnodes: 2\ndevices_per_node: 2\n"
        "network: {bandwidth_per_device: {value: 0.01, unit: GB/s}}\n"
    )
    flags = ["--cluster", "slow.yaml", "--memory-limit", "3GiB", "--batch", "8", "--set", "mesh.data=4"]
    assert main(["plan", GPT, *SMALL, *flags, "-q", "-o", "plan.yaml"]) == 0
    capsys.readouterr()
    text = Path("plan.yaml").read_text()
    assert "slow.yaml" in text and "memory_limit: 3GiB" in text
    there = predicted(capsys, "plan.yaml")
    assert there["memory_limit_bytes"] == 3 * 2**30
    usual = predicted(capsys, "plan.yaml", "--device", "a100-sxm-80gb", "--gpus", "4", "--gpus-per-node", "2")
    assert there["step_time_s"] > usual["step_time_s"]  # type: ignore[operator]
    assert usual["memory_limit_bytes"] > 70 * 2**30  # type: ignore[operator]
    Path("slow.yaml").unlink()
    assert main(["check", "plan.yaml"]) == 4
    assert (
        "the cluster file 'slow.yaml', which is not here; give it with --cluster" in capsys.readouterr().err
    )
