"""Parameters of repeated layers are kept from the tracer; whatever looks for them finds them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autopar.capture import export
from autopar.capture.capture import capture
from autopar.capture.structure import equal_modules
from autopar.capture.withheld import EVERYTHING, Withheld
from tests.capture.same_graph import assert_same_graph, capture_both_ways
from tests.capture.stacks import Layer, Stack, source


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Of every export, the layers left in their place, or None where all were traced."""
    found: list[Any] = []
    plain = export._exported

    def recorded(source: Any, dtype: Any, size: Any, in_place: Any) -> Any:
        found.append(None if in_place is None else sorted(in_place))
        return plain(source, dtype, size, in_place)

    monkeypatch.setattr(export, "_exported", recorded)
    return found


def names(model: nn.Module) -> list[str]:
    """Layers whose parameters are withheld."""
    return [layer.name for layer in Withheld(model, equal_modules(model))._layers]


def layers(count: int = 3) -> nn.ModuleList:
    return nn.ModuleList(Layer(index) for index in range(count))


def test_all_but_the_first_of_a_stack() -> None:
    assert names(Stack(Layer, num_layers=4)) == ["layers.1", "layers.2", "layers.3"]


def test_the_tracer_sees_none_of_them(exports: list[Any]) -> None:
    model = Stack(Layer)
    withheld = Withheld(model, equal_modules(model))
    before = dict(model.named_parameters())
    with withheld.away():
        assert [name for name, _ in model.named_parameters()] == [
            *(f"embed.{part}" for part in ("weight", "bias")),
            *(name for name in before if name.startswith("layers.0.")),
        ]
        with withheld.shown(0):
            assert model.layers[1].linear.weight is before["layers.1.linear.weight"]
    assert dict(model.named_parameters()) == before and withheld.wanted is None
    assert_same_graph(*capture_both_ways(source(lambda: Stack(Layer))))
    assert exports == [[], None]


def test_what_others_hold_too_stays() -> None:
    class Tied(Stack):
        def __init__(self) -> None:
            super().__init__(Layer, num_layers=4)
            self.layers[2].linear.weight = self.layers[3].linear.weight
            self.layers[1].norm = self.layers[0].norm

    assert names(Tied()) == []


def test_stacks_do_not_stand_for_each_other() -> None:
    model = nn.ModuleDict({"encoder": layers(2), "decoder": layers(2)})
    assert names(model) == ["encoder.1", "decoder.1"]


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(8), lambda: nn.LSTM(8, 8)])
def test_layers_with_buffers_or_other_ways_to_their_parameters(make: Callable[[], nn.Module]) -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.held = nn.Linear(8, 8), make()

    assert names(nn.ModuleList(Held() for _ in range(3))) == []


class Penalised(Stack):
    """Reads a weight of a later layer by name."""

    def __init__(self) -> None:
        super().__init__(Layer, num_layers=4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.layers[2].linear.weight.square().mean()


class Decayed(Penalised):
    """Goes through all parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return Stack.forward(self, x) + torch.stack([p.square().sum() for p in self.parameters()]).sum()


class Asking(Penalised):
    """Does another thing where a layer has a bias."""

    def forward(self, x: Tensor) -> Tensor:
        loss = Stack.forward(self, x)
        return loss * 2 if getattr(self.layers[1].linear, "bias", None) is not None else loss


class Bypassing(Penalised):
    """Calls a part of a layer, past the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return Stack.forward(self, x) + self.layers[3].norm(x).mean()


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (Penalised, ["layers.2"]),
        (Decayed, [EVERYTHING]),
        (Asking, ["layers.1"]),
        (Bypassing, ["layers.3"]),
    ],
)
def test_whatever_looks_for_them_finds_them(
    kind: type[Penalised], first: list[str], exports: list[Any]
) -> None:
    assert_same_graph(*capture_both_ways(source(kind)))
    assert exports[:2] == [[], [f"module.{name}" if name else name for name in first]]
    assert exports[2:] == [None]  # the capture it is compared with


def test_layer_that_differs(exports: list[Any]) -> None:
    class Alternating(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(self.index, 1)

    assert_same_graph(*capture_both_ways(source(lambda: Stack(lambda i: Alternating(i % 2), num_layers=6))))
    assert exports == [[], ["module.layers.1"], None]


def test_layers_that_all_differ(exports: list[Any]) -> None:
    class ByIndex(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(self.index, 1)

    assert_same_graph(*capture_both_ways(source(lambda: Stack(ByIndex))))
    assert exports == [[], ["module.layers.1"], [EVERYTHING, "module.layers.1"], None]


def test_without_gradients(exports: list[Any]) -> None:
    class Frozen(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            with torch.no_grad():
                for layer in self.layers:
                    x = layer(x)
            return self.embed(x).mean()  # type: ignore[no-any-return]

    capture(source(lambda: Frozen(Layer)))
    assert exports[-1] == [EVERYTHING, "module.layers.1"]
