"""Recording the construction of a model on fake tensors, to run slices of it later on real ones.

``build_model()`` runs once under a fake tensor mode (no memory) and a dispatch mode that writes down every
operator with the storages that it reads and writes. The initial value of one parameter is then a slice of
that record. This module is the only one of the runtime that uses torch's fake tensors and dispatch modes.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from autopar.errors import UsageError
from autopar.runtime.randomness import untouched_randomness

# In-place operators that replace every element: what was written to the same memory before them is dead.
_REPLACING = {
    "aten::bernoulli_",
    "aten::copy_",
    "aten::exponential_",
    "aten::fill_",
    "aten::normal_",
    "aten::random_",
    "aten::uniform_",
    "aten::zero_",
}


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor of the record: a window on storage number ``storage``."""

    storage: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Operation:
    """One recorded operator call; tensors in ``arguments`` are ``TensorView`` or real constants.

    Attributes:
        reads: storages that must exist, with their values, before the call.
        writes: storages that the call creates or changes.
        replaces: storages of which nothing from before the call is left.
    """

    target: Callable[..., Any]
    arguments: tuple[Any, Any]
    outputs: tuple[TensorView, ...]
    reads: frozenset[int]
    writes: frozenset[int]
    replaces: frozenset[int]
    is_random: bool


class Recording:
    """The construction of a model: the module on fake tensors, and the operators that gave it its values.

    Attributes:
        is_complete: no values came from where operators do not show them, such as a file.
        is_one_stream: all random numbers follow one another in the stream that the construction began with.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.module: nn.Module = nn.Module()
        self.is_complete = True
        self.is_one_stream = True
        self._storages: list[torch.UntypedStorage] = []
        self._numbers: dict[int, int] = {}
        self._writers: dict[int, list[int]] = {}

    def view(self, tensor: Tensor) -> TensorView:
        """The place of a fake tensor in the record."""
        storage = tensor.untyped_storage()
        number = self._numbers.get(id(storage))
        if number is None:
            number = self._numbers[id(storage)] = len(self._storages)
            self._storages.append(storage)  # kept alive, so that its id stays its own
        return TensorView(
            number, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()), tensor.dtype
        )

    def storage_bytes(self, storage: int) -> int:
        """Size of a storage of the record."""
        return self._storages[storage].nbytes()

    def add(self, operation: Operation) -> None:
        """Appends an operator call."""
        for storage in operation.writes:
            self._writers.setdefault(storage, []).append(len(self.operations))
        self.operations.append(operation)

    def slice_for(self, view: TensorView) -> list[int]:
        """Indices of the operations that the final value of ``view`` depends on, in order."""
        wanted: set[int] = set()
        pending = [(view.storage, len(self.operations))]
        seen: set[tuple[int, int]] = set()
        while pending:
            storage, bound = pending.pop()
            if (storage, bound) in seen:
                continue
            seen.add((storage, bound))
            for index in reversed(self._writers.get(storage, ())):
                if index >= bound:
                    continue
                operation = self.operations[index]
                if index not in wanted:
                    wanted.add(index)
                    pending.extend((read, index) for read in operation.reads - operation.replaces)
                if storage in operation.replaces:
                    break
        return sorted(wanted)


class Replay:
    """Real memory in which recorded operations are run again."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._storages: dict[int, torch.UntypedStorage] = {}

    def tensor(self, view: TensorView) -> Tensor:
        """The real tensor that stands for ``view`` now; shares memory with the replay."""
        if view.storage not in self._storages:
            self._storages[view.storage] = torch.UntypedStorage(  # type: ignore[no-untyped-call]
                self._recording.storage_bytes(view.storage)
            )
        empty = torch.empty(0, dtype=view.dtype)
        return empty.set_(self._storages[view.storage], view.offset, view.shape, view.stride)

    def run(self, operation: Operation) -> None:
        """Runs one operation on real memory."""

        def real(leaf: Any) -> Any:
            if isinstance(leaf, TensorView):
                return self.tensor(leaf)
            if isinstance(leaf, Tensor):
                return leaf.clone()  # later operations may write to what this one makes of it
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        arguments, keywords = tree_map(real, operation.arguments)
        with torch.no_grad():
            result = operation.target(*arguments, **keywords)
        tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        for view, tensor in zip(operation.outputs, tensors, strict=True):
            self._storages.setdefault(view.storage, tensor.untyped_storage())

    def free(self, storage: int) -> None:
        """Forgets a storage that nothing reads any more."""
        self._storages.pop(storage, None)


class OtherAnswerError(Exception):
    """A value that the construction asked for is another one in this replay."""


class _OneFakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """A mode that copied tensors share with their originals; else what is written to them is lost."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _OneFakeMode:
        return self


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, recording: Recording, fake_mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recording = recording
        self._converter = fake_mode.fake_tensor_converter.meta_converter
        self._random_state = torch.get_rng_state()
        self._constants: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return self._value_of(args[0])
        recorded = tree_map(self._recorded, (args, kwargs))
        result = func(*args, **kwargs)
        # Module.to() swaps tensors, but not those that anything has a weak reference to.
        self._converter.tensor_memo.clear()
        self._converter.describer.lookup_tensor.clear()
        self._add(func, args, kwargs, recorded, result)
        return result

    def _recorded(self, leaf: Any) -> Any:
        if isinstance(leaf, FakeTensor):
            return self._recording.view(leaf)
        if isinstance(leaf, Tensor):
            with _disable_current_modes():
                constant = leaf.detach().clone()
            self._constants.append((leaf, constant))
            return constant
        # Of torch.load(), which reads no values here; and a state that may be anything when it is replayed.
        if isinstance(leaf, (torch.UntypedStorage, torch.Generator)):
            self._recording.is_complete = False
        return leaf

    def finish(self) -> None:
        """Looks for what has changed unseen since it was recorded, such as the array behind a tensor."""
        with _disable_current_modes():
            if not all(torch.equal(leaf, constant) for leaf, constant in self._constants):
                self._recording.is_complete = False

    def _add(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], recorded: Any, result: Any
    ) -> None:
        outputs = tuple(self._recording.view(x) for x in tree_leaves(result) if isinstance(x, FakeTensor))
        reads = frozenset(x.storage for x in tree_leaves(recorded) if isinstance(x, TensorView))
        created = frozenset(x.storage for x in outputs) - reads
        changed: set[int] = set()
        replaced: set[int] = set()
        sources: set[int] = set()
        for position, argument in enumerate(func._schema.arguments):
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in (x for x in tree_leaves(value) if isinstance(x, FakeTensor)):
                storage = self._recording.view(tensor).storage
                (changed if is_written else sources).add(storage)
                if is_written and func._schema.name in _REPLACING and _is_whole(tensor):
                    replaced.add(storage)
        if not created and not changed:
            return
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        if is_random:
            self._follow_stream(outputs_on_meta=any(x.is_meta for x in tree_leaves(result)))
        self._recording.add(
            Operation(
                target=func,
                arguments=recorded,
                outputs=outputs,
                reads=reads,
                writes=created | changed,
                replaces=frozenset(replaced - sources),
                is_random=is_random,
            )
        )

    def _follow_stream(self, outputs_on_meta: bool) -> None:
        """Called for every draw: sees whether the user has set the generator since the one before."""
        with _disable_current_modes():
            is_set = not torch.equal(torch.get_rng_state(), self._random_state)
            if is_set or outputs_on_meta:  # where nothing is drawn
                self._recording.is_one_stream = False
            torch.rand(())  # fake draws leave the generator where it was, as setting the same seed would
            self._random_state = torch.get_rng_state()

    def _value_of(self, tensor: FakeTensor) -> Any:
        view = self._recording.view(tensor)
        indices = self._recording.slice_for(view)
        operations = [self._recording.operations[index] for index in indices]
        with _disable_current_modes(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            replay = Replay(self._recording)
            for operation in operations:
                replay.run(operation)
            answer = replay.tensor(view).item()
        if any(operation.is_random for operation in operations):
            self._note_answer(view, answer)
        return answer

    def _note_answer(self, view: TensorView, answer: Any) -> None:
        """A value that other draws make another one decides how the construction goes on."""
        if not _is_in_initialiser():
            self._recording.is_complete = False

        def compare(found: Tensor) -> None:
            if found.item() != answer:
                raise OtherAnswerError

        reads, none = frozenset({view.storage}), frozenset[int]()
        self._recording.add(Operation(compare, ((view,), {}), (), reads, none, none, is_random=False))


def _is_in_initialiser() -> bool:
    """Whether one of ``torch.nn.init`` is at work: ``trunc_normal_`` asks whether to draw some again."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != nn.init.__file__:
        frame = frame.f_back
    return frame is not None


def _is_whole(tensor: Tensor) -> bool:
    storage = tensor.untyped_storage()
    return tensor.is_contiguous() and tensor.numel() * tensor.element_size() == storage.nbytes()


@contextmanager
def _fixed_randomness(seed: int) -> Iterator[None]:
    # Random numbers of Python and numpy are drawn while recording: every rank must draw the same.
    with untouched_randomness():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield


def record_construction(build_model: Callable[[], nn.Module], seed: int = 0) -> Recording:
    """Runs ``build_model()`` on fake tensors and writes down how its parameters and buffers come by their
    values.

    Where it reads values from a file, computes with those that it has drawn, draws from a generator of its
    own, or does what fake tensors cannot, it runs again as it is: see ``construct``.

    Raises:
        UsageError: shapes depend on values of tensors.
    """
    recording = Recording()
    try:
        _record(recording, build_model, seed)
    except DynamicOutputShapeException as error:
        raise UsageError(
            f"build_model() decides by the value of a tensor ({error}), which is not there while the"
            " construction"
            " is recorded; compute it with plain Python numbers instead"
        ) from error
    except Exception:  # libraries raise any kind; if it is the user's mistake, it comes again
        recording.is_complete = False
    return recording if recording.is_complete else construct(build_model, seed)


def construct(build_model: Callable[[], nn.Module], seed: int) -> Recording:
    """Runs ``build_model()`` as it is, from ``torch.manual_seed(seed)``: the module is a real one, whole in
    memory, and nothing is recorded.
    """
    built = Recording()
    built.is_complete = False
    with _fixed_randomness(seed):
        built.module = build_model()
    return built


def _record(recording: Recording, build_model: Callable[[], nn.Module], seed: int) -> None:
    fake_mode = _OneFakeMode(allow_non_fake_inputs=True)
    with (
        warnings.catch_warnings(),
        _fixed_randomness(seed),
        fake_mode,
        _Recorder(recording, fake_mode) as recorder,
    ):
        # copy.deepcopy of a parameter asks for its address, only to see that it has none.
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        recording.module = build_model()
        recorder.finish()


def is_recorded(tensor: Tensor) -> bool:
    """Whether the tensor is fake, so that its value has to be replayed."""
    return isinstance(tensor, FakeTensor)
