"""Numbers that a model's forward keeps in attributes of its modules: steps counted, rates that decay.

A graph computes with what they were at capture, in every step. That is the model only where the graph does
not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, fx, nn

from autopar.errors import CaptureError

Number = int | float | bool


@dataclass(frozen=True, slots=True)
class OwnNumbers:
    """What the modules of a model hold as attributes of their own, besides modules and parameters.

    Attributes:
        numbers: (name of the module, attribute) -> plain number.
        tensors: name of the module -> its tensors.
    """

    numbers: Mapping[tuple[str, str], Number]
    tensors: Mapping[str, tuple[Tensor, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> OwnNumbers:
        """Those of ``model`` as they are now."""
        modules = dict(model.named_modules())
        return cls(
            {
                (path, name): value
                for path, module in modules.items()
                for name, value in vars(module).items()
                if type(value) in (int, float, bool)
            },
            {
                path: tuple(value for value in vars(module).values() if isinstance(value, Tensor))
                for path, module in modules.items()
            },
        )

    def changed(self, model: nn.Module) -> ChangedNumbers:
        """What a forward has changed in ``model`` since."""
        after = OwnNumbers.of(model)
        values = {
            key: after.numbers[key]
            for key, value in self.numbers.items()
            if type(after.numbers.get(key)) is type(value) and after.numbers[key] != value
        }
        # A length kept beside a table: the next forward finds both, and computes the same.
        cached = {path for path, tensors in self.tensors.items() if not _same(tensors, after.tensors[path])}
        return ChangedNumbers({key: value for key, value in values.items() if key[0] not in cached})


@dataclass(frozen=True, slots=True)
class ChangedNumbers:
    """Numbers that a forward leaves different from what it found.

    Attributes:
        values: (name of the module, attribute) -> what it left.
    """

    values: Mapping[tuple[str, str], Number]

    def __bool__(self) -> bool:
        return bool(self.values)

    def __str__(self) -> str:
        names = [f"'{path}.{name}'" if path else f"'{name}'" for path, name in self.values]
        return f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"

    def set_after(self, build_model: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        """A ``build_model`` whose model has them from the start."""

        def build() -> nn.Module:
            model = build_model()
            for (path, name), value in self.values.items():
                setattr(model.get_submodule(path), name, value)
            return model

        return build

    def check_unused(self, first: fx.Graph, second: fx.Graph) -> None:
        """Refuses a model whose graph after the change is another one than before.

        Raises:
            CaptureError: it names the attributes, and what to do.
        """
        if _text(first) != _text(second):
            raise CaptureError(
                f"the model's forward computes with {self}, which it changes itself, and a plan would repeat "
                "what it was at capture in every step; count in the training script and give the number as "
                "an entry of the batch, or keep it in a buffer (register_buffer) and compute with tensors"
            )


@contextmanager
def watched_numbers(model: nn.Module, found: list[ChangedNumbers]) -> Iterator[None]:
    """Inside, a forward runs; appends what it has changed (the exporter undoes it afterwards)."""
    before = OwnNumbers.of(model)
    yield
    found.append(before.changed(model))


def _same(tensors: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    return len(tensors) == len(others) and all(map(lambda one, other: one is other, tensors, others))


def _text(graph: fx.Graph) -> list[tuple[str, str, str]]:
    return [(node.name, repr(node.args), repr(node.kwargs)) for node in graph.nodes]
