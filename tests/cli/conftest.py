"""A plan file as the planner writes it, made once: a small GPT on four CPU processes, in two stages.

Commands that are called in this process capture a model once a session.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.target import ModelSource
from autopar.cli.main import main
from autopar.planner import check, planner

ROOT = Path(__file__).resolve().parents[2]
GPT = str(ROOT / "examples" / "gpt.py")
SMALL = [x for n in ("n_layer=4", "n_embd=64", "n_head=4", "seq=32", "vocab=256") for x in ("--arg", n)]
PINS = (
    "mesh.pipeline=2 mesh.tensor=2 batch.micro=4 pipeline.schedule=1f1b zero=0 "
    "tensor.blocks.*.attn.qkv=column tensor.blocks.*.attn.proj=row recompute.blocks.0-1=full"
)

_captures: dict[tuple[str, bytes, str, torch.dtype], Capture] = {}


def forget_captures() -> None:
    """The next command captures anew, as the first one did."""
    _captures.clear()


def _capture_once(source: ModelSource, dtype: torch.dtype) -> Capture:
    file = Path(source.target.partition(":")[0])
    text = file.read_bytes() if file.is_file() else b""
    key = (source.target, text, repr(sorted(source.args.items())), dtype)
    if not text or key not in _captures:
        _captures[key] = capture(source, dtype)
    return _captures[key]


@pytest.fixture(scope="session", autouse=True)
def shared_captures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (check, planner):
            patch.setattr(module, "capture", _capture_once)
        yield


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
