"""Models that cannot be captured: the message names the user's line, what is wrong there and what to do."""

from pathlib import Path

import pytest
import torch

from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.errors import CaptureError

FILE = """
import torch
from torch import nn
{top}

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        {init}

    def forward(self, x):
        x = self.linear(x)
        {bad}  # here
        return x.mean()

def build_model():
    return Model()

def example_batch(batch_size):
    return {{"x": torch.randn(batch_size, 4)}}
"""

CASES = {
    "item": ("x = x * float(x.sum().item())", r"reads the value of a tensor.*keep it in a tensor"),
    "tolist": ("x = x * x.sum(0).tolist()[0]", r"reads the value of a tensor"),
    "if": ("x = x if x.sum() > 0 else -x", r"control flow or a shape depends on the values.*torch\.where"),
    "boolean index": ("x = x[x > 0] if True else x", r"depends? on the values of tensors.*mask"),
    "numpy": ("x = x + torch.from_numpy(x.detach().numpy())", r"cannot be captured"),
    "shapes": ("x = x @ torch.ones(5, 5)", r"cannot be captured.*example_batch\(\)"),
    "raises": ("raise RuntimeError('not today')", r"not today"),
}


def write(folder: Path, bad: str = "pass", init: str = "pass", top: str = "") -> tuple[str, int]:
    text = FILE.format(bad=bad, init=init, top=top)
    path = folder / "model.py"
    path.write_text(text)
    return str(path), next(i for i, line in enumerate(text.splitlines(), 1) if line.endswith("# here"))


@pytest.mark.parametrize("case", CASES)
def test_line_cause_and_remedy(case: str, tmp_path: Path) -> None:
    bad, message = CASES[case]
    target, line = write(tmp_path, bad)
    with pytest.raises(CaptureError, match=rf"(?s)model\.py:{line}: .*{message}") as caught:
        capture(load_target(target))
    assert caught.value.exit_status == 5


def test_operator_without_shape_function(tmp_path: Path) -> None:
    top = (
        '@torch.library.custom_op("autopar_capture_test::opaque", mutates_args=())\n'
        "def opaque(x: torch.Tensor) -> torch.Tensor:\n    return x.clone()\n"
    )
    target, line = write(tmp_path, "x = opaque(x)", top=top)
    with pytest.raises(CaptureError, match=rf"model\.py:{line}: .*no shape function.*register_fake"):
        capture(load_target(target))


def test_autocast_inside_the_model(tmp_path: Path) -> None:
    bad = 'with torch.autocast("cpu", torch.bfloat16): x = self.linear(x)'
    target, line = write(tmp_path, bad)
    with pytest.raises(CaptureError, match=rf"model\.py:{line}: autocast is switched on.*precision: bf16"):
        capture(load_target(target))


def test_tensor_as_a_plain_attribute(tmp_path: Path) -> None:
    target, _ = write(tmp_path, "x = x * self.scale", init="self.scale = torch.randn(4)")
    with pytest.raises(CaptureError, match=r"tensor 'scale' as a plain attribute.*register_buffer\('scale'"):
        capture(load_target(target))


def test_spectra_of_16_bit_numbers(tmp_path: Path) -> None:
    target, line = write(tmp_path, "x = torch.fft.fft(x).real")
    message = rf"model\.py:{line}: .*does not know 16-bit numbers.*--precision fp32"
    with pytest.raises(CaptureError, match=message):
        capture(load_target(target), torch.bfloat16)


def test_packed_sequences(tmp_path: Path) -> None:
    lengths = "torch.full((x.shape[0],), 1)"
    bad = f"x = self.rnn(nn.utils.rnn.pack_padded_sequence(x[:, None], {lengths}, True, False))[1]"
    target, line = write(tmp_path, bad, init="self.rnn = nn.GRU(4, 4, batch_first=True)")
    with pytest.raises(CaptureError, match=rf"model\.py:{line}: .*packed sequences.*padded batch.*gather"):
        capture(load_target(target))


def test_the_work_space_of_ctc_loss(tmp_path: Path) -> None:
    sizes = "torch.full((x.shape[0],), 1)"
    bad = f"x = nn.functional.ctc_loss(x.log_softmax(-1)[None], {sizes}[:, None], {sizes}, {sizes})"
    target, line = write(tmp_path, bad)
    with pytest.raises(CaptureError, match=rf"model\.py:{line}: .*work space of ctc_loss.*custom_op"):
        capture(load_target(target))
