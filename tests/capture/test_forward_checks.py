"""What a forward may not do, since its graph would compute something else; and what it may."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autopar.capture.capture import capture
from autopar.capture.forward_checks import forward_checks
from autopar.capture.target import ModelSource, source_from_functions
from autopar.errors import CaptureError
from tests.capture.chain_runner import assert_same_as_eager


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x))).square().mean()

    def between(self, x: Tensor) -> Tensor:
        return x


class CustomBackward(Net):
    def between(self, x: Tensor) -> Tensor:
        return Sign.apply(x)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale = scale  # type: ignore[attr-defined]
        return x * (scale * x).sigmoid()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (x,), scale = ctx.saved_tensors, ctx.scale  # type: ignore[attr-defined]
        gate = (scale * x).sigmoid()
        return gradient * gate * (1 + scale * x * (1 - gate)), None


class TrueBackward(Net):
    def between(self, x: Tensor) -> Tensor:
        return Swish.apply(x, 1.5)


class CustomBackwardWithoutGradient(Net):
    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            signs = Sign.apply(x)
        return x * signs


class GradientHook(Net):
    def between(self, x: Tensor) -> Tensor:
        x.register_hook(lambda gradient: gradient * 0.1)
        return x


class PythonDraw(Net):
    def between(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.5 else -x


class NumpyDraw(Net):
    def between(self, x: Tensor) -> Tensor:
        return x if np.random.random() < 0.5 else -x


class Recompute(Net):
    def between(self, x: Tensor) -> Tensor:
        x = checkpoint(self.first, x, use_reentrant=True)
        return checkpoint(self.first, x, use_reentrant=False)


class RecomputeOfTheInput(Net):
    """Torch leaves the first layer without gradients, as no input of what is computed again has any."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.first, x, use_reentrant=True)).square().mean()


def source_of(model: type[nn.Module]) -> ModelSource:
    return source_from_functions(model, lambda size: {"x": torch.randn(size, 4)})


CASES = {
    CustomBackward: r"test_forward_checks\.py:\d+: the backward of Sign .*detach\(\)",
    GradientHook: r"test_forward_checks\.py:\d+: hooks on gradients.*detach\(\)",
    PythonDraw: r"test_forward_checks\.py:\d+: .*draws from the generator of Python's random.*torch\.where",
    NumpyDraw: r"test_forward_checks\.py:\d+: .*draws from the generator of numpy\.random.*torch\.where",
}


@pytest.mark.parametrize("model", CASES)
def test_refused_with_a_remedy(model: type[nn.Module]) -> None:
    with pytest.raises(CaptureError, match=CASES[model]):
        capture(source_of(model))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "model", [Recompute, RecomputeOfTheInput, CustomBackwardWithoutGradient, TrueBackward]
)
def test_what_loses_nothing_is_captured(model: type[nn.Module]) -> None:
    assert_same_as_eager(capture(source_of(model), torch.float64), 3, tolerance=1e-15)


def test_nothing_is_left_behind() -> None:
    before = (vars(torch.autograd.Function)["apply"], Tensor.register_hook, random.random, np.random.rand)
    with pytest.raises(CaptureError), forward_checks():
        Sign.apply(torch.ones(2, requires_grad=True))
    after = (vars(torch.autograd.Function)["apply"], Tensor.register_hook, random.random, np.random.rand)
    assert after == before
    assert Sign.apply(torch.ones(2, requires_grad=True)).requires_grad
