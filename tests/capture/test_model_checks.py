"""Models that hold what a plan would silently leave out are refused by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.target import source_from_functions
from autopar.errors import CaptureError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)).square().mean()


def complex_parameter() -> nn.Module:
    model = Net()
    model.weight = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
    return model


def parameter_hook() -> nn.Module:
    model = Net()
    model.first.weight.register_hook(lambda gradient: gradient * 0.1)
    return model


def accumulation_hook() -> nn.Module:
    model = Net()
    model.first.bias.register_post_accumulate_grad_hook(lambda parameter: None)
    return model


def backward_hook() -> nn.Module:
    model = Net()
    model.last.register_full_backward_hook(lambda module, before, after: None)
    return model


def backward_pre_hook() -> nn.Module:
    model = Net()
    model.register_full_backward_pre_hook(lambda module, after: None)
    return model


def synchronised() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(Net(), nn.BatchNorm1d(4)))


def scripted() -> nn.Module:
    return nn.Sequential(Net(), torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())))


CASES: dict[Callable[[], nn.Module], str] = {
    complex_parameter: r"parameter 'weight' is complex \(torch.complex64.*shape \(3, 2\).*view_as_complex",
    lambda: Net().to(torch.cfloat): r"parameter 'first.weight' is complex",
    parameter_hook: r"test_model_checks\.py:\d+: parameter 'first.weight' has a gradient hook.*step\(\)",
    accumulation_hook: r"parameter 'first.bias' has a gradient hook",
    backward_hook: r"test_model_checks\.py:\d+: module 'last' has a backward hook",
    backward_pre_hook: r"the model has a backward hook",
    synchronised: r"module '1' is a SyncBatchNorm.*GroupNorm",
    nn.Tanh: r"the model \(Tanh\) has no parameters",
    lambda: nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2)): r"py:\d+: lazy modules.*nn\.Linear",
}


@pytest.mark.parametrize("build", CASES)
def test_refused_by_name_with_a_remedy(build: Callable[[], nn.Module]) -> None:
    source = source_from_functions(build, lambda size: {"x": torch.randn(size, 4)})
    with pytest.raises(CaptureError, match=f"(?s){CASES[build]}"):
        capture(source)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripts_are_refused() -> None:
    source = source_from_functions(scripted, lambda size: {"input": torch.randn(size, 4)})
    with pytest.raises(CaptureError, match=r"module '1' is a torch.jit script.*plain module"):
        capture(source)


def test_complex_entries_of_the_batch_are_refused() -> None:
    source = source_from_functions(Net, lambda size: {"x": torch.randn(size, 4, dtype=torch.cfloat)})
    with pytest.raises(CaptureError, match=r"\['x'\] is complex.*view_as_real"):
        capture(source)
