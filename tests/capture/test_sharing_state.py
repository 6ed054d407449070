"""Equal layers are traced once, unless they read or leave state: globals, closures, lists, iterators."""

from typing import Any

import pytest
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.errors import CaptureError
from tests.capture.stacks import Layer, Stack, count, source, stack

LOG: list[int] = []
WINDOWS = {"step": 0}
COUNT = 0


def forget() -> None:
    global COUNT
    COUNT = 0
    LOG.clear()
    WINDOWS["step"] = 0


class AppendsToGlobal(Layer):
    def forward(self, x: Tensor) -> Tensor:
        LOG.append(1)
        return super().forward(x) * len(LOG)


class CountsGlobally(Layer):
    def forward(self, x: Tensor) -> Tensor:
        global COUNT
        COUNT += 1
        return super().forward(x) * COUNT


class CountsInClass(Layer):
    count = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).count += 1
        return super().forward(x) * self.count


class CountsInDefault(Layer):
    def forward(self, x: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006
        seen.append(1)
        return super().forward(x) * len(seen)


class WritesAttribute(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.last_size = x.shape[-1]
        return super().forward(x)


class WritesItsDict(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["seen"] = self.__dict__.get("seen", 0) + 1
        return super().forward(x) * self.__dict__["seen"]


class ReadsItsDict(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + vars(self)["index"])


@pytest.mark.parametrize(
    "layer", [AppendsToGlobal, CountsGlobally, CountsInClass, CountsInDefault, WritesItsDict, ReadsItsDict]
)
def test_state_outside_of_the_arguments(layer: type[Layer], traced: list[str]) -> None:
    def build() -> nn.Module:
        forget()
        CountsInClass.count = 0
        CountsInDefault.forward.__defaults__[0].clear()  # type: ignore[index]
        return Stack(layer)

    assert count(source(build), traced, layer.__name__) == 3


def test_attribute_writes(traced: list[str]) -> None:
    assert count(stack(WritesAttribute), traced, "WritesAttribute") == 3


def test_list_shared_by_the_layers(traced: list[str]) -> None:
    class Appending(Layer):
        def __init__(self, log: list[int]) -> None:
            super().__init__()
            self.log = log

        def forward(self, x: Tensor) -> Tensor:
            self.log.append(1)
            return super().forward(x) * len(self.log)

    def build() -> nn.Module:
        log: list[int] = []
        return Stack(lambda index: Appending(log))

    assert count(source(build), traced, "Appending") == 3


def test_iterator_shared_by_the_layers(traced: list[str]) -> None:
    class Drawing(Layer):
        def __init__(self, numbers: Any) -> None:
            super().__init__()
            self.numbers = numbers

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * next(self.numbers)

    def build() -> nn.Module:
        numbers = iter(range(100))
        return Stack(lambda index: Drawing(numbers))

    assert count(source(build), traced, "Drawing") == 3


def test_list_handed_from_layer_to_layer(traced: list[str]) -> None:
    class Collecting(Layer):
        def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
            seen.append(x)
            return super().forward(x) + seen[0]

    class Passing(Stack):
        def forward(self, x: Tensor) -> Tensor:
            seen: list[Tensor] = []
            for layer in self.layers:
                x = layer(x, seen)
            return x.mean()

    assert count(source(lambda: Passing(Collecting)), traced, "Collecting") == 3


class ReadsGlobal(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(WINDOWS["step"] % 2, 1)


class SetsGlobal(Stack):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            WINDOWS["step"] += 1
        WINDOWS["step"] = 0
        return x.mean()


def test_global_set_by_the_parent(traced: list[str]) -> None:
    forget()
    assert count(source(lambda: SetsGlobal(ReadsGlobal)), traced, "ReadsGlobal") == 3


def test_closure_set_by_the_parent(traced: list[str]) -> None:
    step = 0

    class Closed(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(step, 1)

    class Setting(Stack):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal step
            x = self.embed(x)
            for index, layer in enumerate(self.layers):
                step = index % 2
                x = layer(x)
            step = 0
            return x.mean()

    assert count(source(lambda: Setting(Closed)), traced, "Closed") == 2


def test_parent_read_by_the_layers(traced: list[str]) -> None:
    class Asking(Layer):
        def __init__(self, parent: list[nn.Module]) -> None:
            super().__init__()
            self.parent = parent

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(self.parent[0].step, 1)  # type: ignore[arg-type]

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = 0
            self.embed = nn.Linear(8, 8)
            self.layers = nn.ModuleList(Asking([self]) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for index, layer in enumerate(self.layers):
                self.step = index % 2
                x = layer(x)
            self.step = 0
            return x.mean()

    assert count(source(Asked), traced, "Asking") == 2


def test_python_random_numbers(traced: list[str]) -> None:
    import random

    class Random(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * random.random()

    with pytest.raises(CaptureError, match="draws from the generator of Python's random"):
        capture(stack(Random))
    assert traced.count("Random") == 3


def test_functions_made_for_each_layer(traced: list[str]) -> None:
    class Calling(Layer):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.function = lambda x: x * (index + 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.function(super().forward(x))

    assert count(stack(Calling), traced, "Calling") == 3


def test_property_of_the_index(traced: list[str]) -> None:
    class Computing(Layer):
        @property
        def factor(self) -> float:
            return 1.0 + self.index

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

    assert count(stack(Computing), traced, "Computing") == 3


def test_table_with_the_layers_as_keys(traced: list[str]) -> None:
    windows: dict[nn.Module, int] = {}

    class Looking(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(windows[self.norm], 1)

    class Filled(Stack):
        def forward(self, x: Tensor) -> Tensor:
            windows.update((layer.norm, index) for index, layer in enumerate(self.layers))
            return super().forward(x)

    assert count(source(lambda: Filled(Looking)), traced, "Looking") == 3
