"""What cleaning does to the exported graph."""

import pytest
import torch
from torch import Tensor, fx, nn

from autopar.capture.capture import Capture, capture
from autopar.capture.model_graph import ModelGraph
from autopar.capture.target import source_from_functions
from tests.capture.chain_runner import assert_same_as_eager
from tests.capture.models import small_capture, small_source

aten = torch.ops.aten


def captured(model: type[nn.Module], dtype: torch.dtype = torch.float64) -> Capture:
    return capture(source_from_functions(model, lambda n: {"x": torch.randn(n, 4)}), dtype)


def targets(model: ModelGraph) -> set[object]:
    return {node.target for block in model.blocks for node in block.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("name", ["gpt", "hf-llama", "hf-t5", "hf-mixtral"])
def test_guards_views_and_noop_casts_are_gone(name: str) -> None:
    model = small_capture(name).at(2)
    found = targets(model)
    assert aten._assert_tensor_metadata.default not in found
    assert aten.view.default not in found
    assert aten.sym_size.int not in found
    for block in model.blocks:
        for cast in block.graph.find_nodes(op="call_function", target=aten.to.dtype):
            assert cast.args[0].meta["val"].dtype != cast.meta["val"].dtype


class CreatesTensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((4, 4), 1.0).tril()
        return (self.linear(x) @ mask + torch.ones(4)).float().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tensors_that_the_code_creates_have_the_compute_dtype(dtype: torch.dtype) -> None:
    model = captured(CreatesTensors, dtype).at(2)
    created: list[fx.Node] = [
        node
        for block in model.blocks
        for node in block.graph.nodes
        if node.target in (aten.full.default, aten.ones.default)
    ]
    assert {node.kwargs["dtype"] for node in created} == {dtype}


class MixesIntegersWithFractions(nn.Module):
    """What takes the default dtype: sizes with a symbol among them, integers and truths beside fractions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(len(x), 4)
        far = torch.arange(4) / 7
        seen = ones > far
        among_scalars = torch.where(seen, 0.1, -0.3)
        beside_integers = torch.where(seen, 0.7, torch.arange(4)) + torch.where(seen, torch.arange(4), 0.7)
        weights = ones * far.sin() + (~seen) * -0.9 + among_scalars + beside_integers
        return (self.linear(x) * weights * (1.0 - ones) * 0.1 + self.linear(weights)).mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_made_of_integers_has_the_compute_dtype_whatever_the_default(dtype: torch.dtype) -> None:
    model = captured(MixesIntegersWithFractions, dtype)
    for block in model.at(2).blocks:
        values = fx.Interpreter(fx.GraphModule(nn.Module(), block.graph))
        inputs = [torch.zeros(v.shape, dtype=v.dtype) for v in placeholders(block.graph)]
        found = values.run(*inputs)
        found = found if isinstance(found, tuple) else (found,)
        assert all(result.dtype is dtype for result in found if result.is_floating_point())
    if dtype is torch.float64:
        assert_same_as_eager(model, 2)


def placeholders(graph: fx.Graph) -> list[Tensor]:
    return [node.meta["val"] for node in graph.find_nodes(op="placeholder")]


def test_float64_computes_float32_casts_in_float64() -> None:
    assert_same_as_eager(captured(CreatesTensors), 2)
    output = captured(CreatesTensors).at(2).blocks[-1].graph.output_node()
    assert output.meta["val"][0].dtype is torch.float64


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        y = self.layers[0](x)
        y = self.layers[1](y) + x
        return (self.layers[2](y) + x).square().mean()


def test_batch_changed_in_place() -> None:
    model = captured(ChangesItsInput)
    assert_same_as_eager(model, 2)
    assert not any(str(target).split(".")[1].endswith("_") for target in targets(model.at(2)))


class NoGradTeacher(nn.Module):
    """A parameter read both with and without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = self.student(x).sigmoid()
        return (self.student(x) - teacher).square().mean()


def test_no_gradient_flows_through_no_grad() -> None:
    model = captured(NoGradTeacher)
    assert_same_as_eager(model, 3)
    flags = [
        n.meta["no_grad"]
        for b in model.at(2).blocks
        for n in b.graph.nodes
        if n.target is aten.linear.default
    ]
    assert sorted(flags) == [False, True]


def test_rotary_frequencies_stay_in_float32() -> None:
    model = capture(small_source("hf-llama"), torch.bfloat16).at(2)
    assert model.buffers["model.rotary_emb.inv_freq"].dtype is torch.float32
    assert model.blocks[1].graph.find_nodes(op="call_function", target=aten.cos.default)[0].meta[
        "val"
    ].dtype in (
        torch.float32,
        torch.bfloat16,
    )
    norms = capture(small_source("resnet"), torch.bfloat16).at(2).buffers
    assert norms["stem.0.1.running_mean"].dtype is torch.bfloat16


def test_checkpointed_modules_are_captured() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=False)
            return self.second(x).mean()

    assert_same_as_eager(captured(Checkpointed), 2)


def test_criterion_as_a_module_is_the_loss() -> None:
    class WithCriterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.criterion = nn.MSELoss()

        def forward(self, x: Tensor) -> Tensor:
            return self.criterion(self.linear(x), x)

    assert [block.name for block in captured(WithCriterion).at(2).blocks] == ["linear", "loss"]


def test_constructor_that_computes_with_values() -> None:
    class DropPath(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            rates = torch.linspace(0, 0.5, 3).tolist()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(rate)) for rate in rates)
            nn.init.trunc_normal_(self.layers[0][0].weight)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x.mean()

    model = captured(DropPath).at(2)
    assert len({b.class_key for b in model.blocks if b.name.startswith("layers.")}) == 3
