"""Equal layers are traced once: the graph is that of the full trace, and layers that differ are noticed."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from autopar.capture import clean
from autopar.capture.capture import capture
from autopar.capture.expand import ExpansionError
from autopar.capture.repeat_operators import REPEAT
from tests.capture.models import SMALL, small_capture, small_source
from tests.capture.same_graph import assert_same_graph
from tests.capture.stacks import Layer, Stack, count, source, stack

# Traced without sharing, which takes these longest.
LONG = ("hf-llama", "hf-mixtral", "hf-t5")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in SMALL]
)
def test_example_models(name: str) -> None:
    every_layer = capture(small_source(name), torch.float64, share_layers=False)
    assert_same_graph(small_capture(name).at(2), every_layer.at(2))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("gpt", "Block"),
        ("hf-gpt2", "GPT2Block"),
        ("hf-llama", "LlamaDecoderLayer"),
        ("hf-bert", "BertLayer"),
        ("hf-vit", "ViTLayer"),
        ("hf-mixtral", "MixtralDecoderLayer"),
    ],
)
def test_uniform_layers_are_traced_once(name: str, layer: str, traced: list[str]) -> None:
    capture(small_source(name))
    assert traced.count(layer) == 1


def test_equal_layers(traced: list[str]) -> None:
    assert count(stack(Layer), traced) == 1


def test_attribute_that_is_not_read_may_differ(traced: list[str]) -> None:
    assert count(stack(lambda index: Layer(index * 10)), traced) == 1


def test_window_by_the_index_in_forward(traced: list[str]) -> None:
    class ByIndex(Layer):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x.roll(1, 1) if self.index % 2 else x

    assert count(stack(ByIndex), traced, "ByIndex") == 3  # the index is read, and no two are equal


def test_window_by_an_attribute(traced: list[str]) -> None:
    class Windowed(Layer):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.window = 2 if index % 2 else 4

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, -self.window :].sum(1, keepdim=True) + x

    assert count(stack(Windowed), traced, "Windowed") == 2


def test_window_from_a_list_of_the_config(traced: list[str]) -> None:
    class Config:
        windows = (1, 2, 1, 3)

    class Configured(Layer):
        def __init__(self, index: int, config: Config) -> None:
            super().__init__(index)
            self.config = config

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(self.config.windows[self.index], 1)

    config = Config()
    assert count(stack(lambda index: Configured(index, config)), traced, "Configured") == 3


def test_window_as_an_argument(traced: list[str]) -> None:
    class Shifted(Layer):
        def forward(self, x: Tensor, window: int) -> Tensor:
            return super().forward(x).roll(window, 1)

    class Passing(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for index, layer in enumerate(self.layers):
                x = layer(x, window=index % 2)
            return x.mean()

    assert count(source(lambda: Passing(Shifted)), traced, "Shifted") == 2


def test_constant_tensors(traced: list[str]) -> None:
    class Scaled(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.tensor([1.0 + self.index])

    assert count(stack(Scaled), traced, "Scaled") == 3


def test_buffers_of_different_values_are_inputs(traced: list[str]) -> None:
    class Scaled(Layer):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.register_buffer("scale", torch.full((8,), float(index)))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    assert count(stack(Scaled), traced, "Scaled") == 1


def test_buffers_of_different_shapes(traced: list[str]) -> None:
    class Scaled(Layer):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(8 if index % 2 else 1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    assert count(stack(Scaled, num_layers=4), traced, "Scaled") == 2


def test_buffers_that_layers_change(traced: list[str]) -> None:
    def make(index: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(8), nn.Unflatten(0, (-1, 6)), Layer())

    assert count(stack(make), traced, "Sequential") == 1


def test_tied_weights(traced: list[str]) -> None:
    class Tied(Stack):
        def __init__(self) -> None:
            super().__init__(Layer, num_layers=4)
            self.layers[1].linear.weight = self.embed.weight
            self.layers[3].linear.weight = self.layers[2].linear.weight

    assert count(source(Tied), traced) == 1


def test_weights_tied_inside_one_layer(traced: list[str]) -> None:
    class Twice(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            if index == 2:
                self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x) if self.a.weight is self.b.weight else self.b(self.a(x))

    assert count(stack(Twice), traced, "Twice") == 2


def test_module_called_twice(traced: list[str]) -> None:
    class Again(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for layer in [*self.layers, *self.layers]:
                x = layer(x)
            return x.mean()

    assert count(source(lambda: Again(Layer)), traced) == 1


def test_submodule_shared_by_all_layers(traced: list[str]) -> None:
    activation, shared = nn.GELU(), nn.Linear(8, 8)

    class Sharing(Layer):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.activation, self.shared = activation, shared

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.shared(self.activation(x)))

    assert count(stack(Sharing), traced, "Sharing") == 1


def test_hooks_inside_and_on_layers(traced: list[str]) -> None:
    class Hooked(Stack):
        def __init__(self) -> None:
            super().__init__(Layer, num_layers=4)
            self.layers[1].norm.register_forward_hook(lambda module, args, output: output * 2.0)
            self.layers[2].register_forward_hook(lambda module, args, output: output * 3.0)
            self.layers[3].register_forward_pre_hook(lambda module, args: (args[0].sin(),))

    assert count(source(Hooked), traced) == 1  # layer 1 has no equal


def test_forward_of_one_instance(traced: list[str]) -> None:
    class Patched(Stack):
        def __init__(self) -> None:
            super().__init__(Layer)
            layer = self.layers[2]
            layer.forward = lambda x: layer.linear(x).sin()

    assert count(source(Patched), traced) == 1


def test_frozen_layers(traced: list[str]) -> None:
    def make(index: int) -> nn.Module:
        return Layer().requires_grad_(index > 1)

    assert count(stack(make, num_layers=4), traced) == 2


class Dropping(Layer):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(super().forward(x))


def test_dropout_of_one_layer_differs(traced: list[str]) -> None:
    assert count(stack(lambda index: Dropping(0.5 if index == 2 else 0.1)), traced, "Dropping") == 2


def test_layer_in_evaluation(traced: list[str]) -> None:
    class Frozen(Stack):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self.layers[1].eval()
            return self

    assert count(source(lambda: Frozen(lambda index: Dropping(0.1))), traced, "Dropping") == 1


def test_stochastic_depth_by_layer(traced: list[str]) -> None:
    class Scaled(Layer):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.keep = 1.0 - 0.1 * index

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.rand(x.shape[0], 1, 1, dtype=x.dtype).add(self.keep).floor()
            return x + super().forward(x) * mask / self.keep

    assert count(stack(Scaled), traced, "Scaled") == 3


def test_no_grad_around_and_inside(traced: list[str]) -> None:
    class Teacher(Layer):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = super().forward(x)
            return super().forward(x) - target

    class Partly(Stack):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.layers[1](self.layers[0](self.embed(x)))
            x = self.embed(x)
            return self.layers[3](self.layers[2](x)).mean()

    assert (
        count(source(lambda: Partly(Teacher, num_layers=4)), traced, "Teacher") == 2
    )  # with gradients, and without


def test_results_of_many_kinds(traced: list[str]) -> None:
    class Many(Layer):
        def forward(self, x: Tensor, mask: Tensor, bias: Tensor | None = None) -> Any:
            y = super().forward(x)
            mask = mask & (y.detach() > 0)
            return {"x": y, "passed": x, "rest": (mask, y, bias, 3, x.shape[0], torch.zeros(8), None)}

    class Reading(Stack):
        def forward(self, x: Tensor) -> Tensor:
            mask = x > 0
            for layer in self.layers:
                out = layer(x, mask, bias=x)
                mask, y, bias, three, size, zeros, _ = out["rest"]
                x = out["x"] * y + bias / three + zeros + out["passed"] / size
            return (x * mask).mean()

    assert count(source(lambda: Reading(Many)), traced, "Many") <= 2


def test_in_place_on_the_argument(traced: list[str]) -> None:
    class InPlace(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).add_(1.0)

    class Overwriting(Layer):
        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2.0)
            return super().forward(x)

    assert count(stack(InPlace), traced, "InPlace") == 1
    assert count(stack(Overwriting), traced, "Overwriting") == 3


def test_layers_of_torch_keep_the_line_that_calls_them(traced: list[str]) -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 8)
            self.a, self.b, self.c = (
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(self.embed(x))
            x = self.b(x)
            return self.c(x).mean()

    assert count(source(Unrolled), traced, "TransformerEncoderLayer") == 1


def test_layers_inside_a_layer_traced_in_full(traced: list[str]) -> None:
    class Outer(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index
            self.inner = nn.ModuleList(Layer() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.inner:
                x = layer(x)
            return x * self.index

    model = source(lambda: Stack(Outer, num_layers=8))
    assert count(model, traced, "Outer") == 4  # then they are no longer tried, and the layers inside are
    assert traced.count("Layer") == 1


def test_graph_that_cannot_be_expanded_is_traced_in_full(
    traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expand = clean.expand_repeats

    def refuse(graph: fx.Graph, withheld: Sequence[Sequence[fx.Node]] = ()) -> None:
        if any(node.target is REPEAT for node in graph.nodes):
            raise ExpansionError("for this test")
        expand(graph, withheld)

    monkeypatch.setattr(clean, "expand_repeats", refuse)
    assert count(stack(Layer), traced) == 1


def test_classes_are_left_as_they_were() -> None:
    before = dict(vars(Layer)), dict(vars(nn.Module)), dict(vars(nn.TransformerEncoderLayer))
    capture(stack(Layer))
    assert before == (dict(vars(Layer)), dict(vars(nn.Module)), dict(vars(nn.TransformerEncoderLayer)))
