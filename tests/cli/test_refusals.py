"""Decisions that no run can carry out together: refused by ``plan`` and by ``check``, with the reason."""

from pathlib import Path

import pytest

from autopar.cli.main import main
from tests.plan.texts import plan_text

MODEL = str(Path(__file__).resolve().parents[1] / "runtime" / "models" / "tied_gpt.py")
PLAN = plan_text(
    ["wte, wpe, blocks.0-1", "blocks.2, ln_f, head, loss"],
    model=f"{{source: {MODEL}, args: {{}}}}",
    cluster="{device: cpu, nodes: 1, devices_per_node: 4}",
    batch="{global: 16, micro: 2}",
    mesh="{pipeline: 2, data: 2, tensor: 1}",
)

# What is asked for, key by key; what the message says.
REFUSED = {
    "several stages a rank under a schedule of one": (
        {"pipeline.schedule": "zero-bubble", "pipeline.virtual": "2"},
        "schedule zero-bubble runs one stage on each rank, but virtual is 2; write virtual: 1",
    ),
    "interleaved with one stage a rank": (
        {"pipeline.schedule": "interleaved", "pipeline.virtual": "1"},
        "schedule interleaved runs several stages on each rank, but virtual is 1; write virtual: 2 or more",
    ),
    "zbv with three stages a rank": (
        {"pipeline.schedule": "zbv", "pipeline.virtual": "3"},
        "schedule zbv runs two stages on each rank, down the ranks and up again, but virtual is 3",
    ),
    "offloaded parameters without ZeRO 3": (
        {"offload": "parameters", "zero": "2"},
        "offload of parameters needs zero: 3, but zero is 2",
    ),
    "a shard group that does not divide": (
        {"mesh.data": "2", "shard_group": "3"},
        "shard_group 3 does not divide mesh.data 2",
    ),
    "a level of ZeRO that does not exist": ({"zero": "4"}, "'zero' is 4; write a whole number from 0 to 3"),
    "more devices than there are": (
        {"mesh.pipeline": "2", "mesh.data": "2", "mesh.tensor": "2"},
        "the mesh pipeline 2 x data 2 x tensor 2 is 8 devices, but the cluster has 4",
    ),
    "a degree that does not divide the devices": (
        {"mesh.pipeline": "3", "mesh.data": "1", "mesh.tensor": "1"},
        "is 3 devices, but the cluster has 4",
    ),
    "micro-batches that do not fill a step": (
        {"batch.micro": "3"},
        "does not divide batch.global 16; a step is a whole number of micro-batches",
    ),
    "a dim that does not exist": (
        {"mesh.pipeline": "2", "mesh.data": "1", "mesh.tensor": "2", "tensor.wpe": "shard(3)"},
        "dim 3 does not exist: the shape is 8, 16; use dims 0 to 1",
    ),
}


def edited(changes: dict[str, str]) -> str:
    """The plan file with other values."""
    lines = PLAN.splitlines()
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        for number, line in enumerate(lines):
            if section in ("mesh", "batch") and line.startswith(f"{section}:"):
                before, found, after = line.partition(f"{leaf}: ")
                lines[number] = before + found + value + after.lstrip("0123456789")
            elif section == "tensor" and line.startswith("tensor:"):
                lines[number] = f'tensor: {{{leaf}: {value}, "*": replicate}}'
            elif line.strip().startswith(f"{leaf}: ") and section in ("", "pipeline"):
                lines[number] = f"{line.partition(':')[0]}: {value}"
                break
        else:
            if not section and not any(line.startswith(f"{leaf}: ") for line in lines):
                lines.append(f"{leaf}: {value}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", REFUSED)
def test_check_refuses_with_the_reason(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = REFUSED[name]
    path = tmp_path / "plan.yaml"
    path.write_text(edited(changes))
    assert main(["check", str(path), "-q"]) == 4
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", REFUSED)
def test_plan_refuses_with_the_reason(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = REFUSED[name]
    pins = [x for key, value in changes.items() for x in ("--set", f"{key}={value}")]
    status = main(["plan", MODEL, "--gpus", "4", "--device", "cpu", "--batch", "16", "-q", *pins])
    assert status in (2, 3, 4)
    assert message in capsys.readouterr().err


def test_the_plan_itself_is_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    assert main(["check", str(path), "-q"]) == 0
