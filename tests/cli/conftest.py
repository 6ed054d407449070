"""A plan file as the planner writes it, made once: a small GPT on four CPU processes, in two stages."""

from pathlib import Path

import pytest

from autopar.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
GPT = str(ROOT / "examples" / "gpt.py")
SMALL = [x for n in ("n_layer=4", "n_embd=64", "n_head=4", "seq=32", "vocab=256") for x in ("--arg", n)]
PINS = (
    "mesh.pipeline=2 mesh.tensor=2 batch.micro=4 pipeline.schedule=1f1b zero=0 "
    "tensor.blocks.*.attn.qkv=column tensor.blocks.*.attn.proj=row recompute.blocks.0-1=full"
)


@pytest.fixture(scope="session")
def planned_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "gpt.yaml"
    pins = [x for pin in PINS.split() for x in ("--set", pin)]
    flags = ["--gpus", "4", "--device", "cpu", "--batch", "16", "-q", "-o", str(path)]
    assert main(["plan", GPT, *SMALL, *flags, *pins]) == 0
    return path.read_text()


@pytest.fixture
def plan_file(planned_text: str, tmp_path: Path) -> Path:
    path = tmp_path / "gpt.yaml"
    path.write_text(planned_text)
    return path
