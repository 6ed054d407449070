"""One block of a rank's stage: a module that runs its lowered program on local tensors.

A block is what is recomputed, gathered and resharded by itself. A parameter that it alone uses is registered
on it, under its original name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from autopar.capture.model_graph import BlockInput, InputKind
from autopar.lower.axis import TensorAxis
from autopar.lower.compiled import Compiler
from autopar.lower.evaluation import check_evaluation, evaluation_program
from autopar.lower.keeping import KeepingAxis, keep_results
from autopar.lower.weight_gradients import WeightGradients
from autopar.plan.decisions import Recompute
from autopar.runtime.routes import BlockProgram, only_looks_up
from autopar.runtime.saved_tensors import OffloadedActivations
from autopar.runtime.storage import StoredParameter, local_tensor
from autopar.runtime.views import own


class Holder(nn.Module):
    """A level of a qualified name; the first level finds what is registered below it."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, tuple[nn.Module, str]] = {}

    def find(self, name: str) -> Tensor:
        """The tensor registered under a dotted name; every forward pass asks, so places are remembered."""
        if name not in self._places:
            path, _, leaf = name.rpartition(".")
            self._places[name] = self.get_submodule(path), leaf
        module, leaf = self._places[name]
        found: Tensor = getattr(module, leaf)
        return found


def register(root: nn.Module, name: str, tensor: nn.Parameter | Tensor) -> None:
    """Registers a parameter or buffer on ``root`` under a dotted name."""
    *path, leaf = name.split(".")
    module = root
    for level in path:
        if level not in dict(module.named_children()):
            module.add_module(level, Holder())
        module = module.get_submodule(level)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)


class _Forms:
    """A program in the forms in which it runs."""

    def __init__(self, program: BlockProgram, compiler: Compiler | None) -> None:
        self.program = program
        self.is_selective = program.recompute is Recompute.SELECTIVE
        training = keep_results(program.module) if self.is_selective else program.module
        self.training = compiler.program(training) if compiler is not None else training
        # Where no backward pass runs it a second time, there is no axis that keeps results.
        self.once = program.module if self.is_selective else self.training
        self._evaluation: fx.GraphModule | None = None

    @property
    def evaluation(self) -> fx.GraphModule:
        """Without dropout, with BatchNorm by its running statistics."""
        if self._evaluation is None:
            check_evaluation(self.program.block)
            self._evaluation = evaluation_program(self.program.module)
        return self._evaluation


@dataclass(frozen=True, slots=True)
class _Given:
    """What a block reads besides its own weights, by name: see ``BlockModule.forward``."""

    values: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


class BlockModule(nn.Module):
    """A block of the stage; in evaluation mode it runs without dropout and changes no buffer.

    Args:
        program: what it runs.
        axis: collectives of the tensor axis.
        stored: stored form of the parameters, by canonical name.
        compute_copies: by name, copies in the compute dtype to be read instead of the registered parameters.
        compiler: of what runs in training, if it shall be compiled.

    Attributes:
        clones_views: return copies of outputs that are views. FSDP hangs its hooks on the outputs, and an
            in-place operator of the next block on a view would lose them.
        offloaded: takes what the block saves for its backward pass to host memory, if anything does.
    """

    def __init__(
        self,
        program: BlockProgram,
        axis: TensorAxis,
        stored: Mapping[str, StoredParameter],
        constants: Mapping[str, Tensor],
        compute_copies: Mapping[str, Tensor],
        compiler: Compiler | None = None,
    ) -> None:
        super().__init__()
        # Not in the module tree, whose parameters must be the original names only.
        self._forms = {id(program): _Forms(program, compiler)}
        self._compiler = compiler
        self._axis = axis
        self._stored = stored
        self._constants = constants
        self._compute_copies = compute_copies
        self.weights = Holder()
        self.clones_views = False
        self.offloaded: OffloadedActivations | None = None

    @property
    def only_looks_up(self) -> bool:
        """Whether the backward pass does without the values of its parameters: they are tables of embeddings,
        of which it needs the size alone."""
        return self._compiler is None and all(only_looks_up(form.program) for form in self._forms.values())

    def forward(
        self,
        values: Mapping[str, Tensor],
        shared: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        seed: int,
        weight_gradients: WeightGradients | None,
        program: BlockProgram,
    ) -> tuple[Tensor, ...]:
        """Runs the block.

        Args:
            values: activations and batch entries by global name.
            shared: parameters registered on the stage, as the program wants them.
            buffers: by name.
            seed: of the block's random operators in this micro-batch.
            weight_gradients: where the backward pass leaves them, if it is split.
            program: of the block; the one that it was made with, or another.

        Returns:
            The program's outputs in order.
        """
        form = self._forms.get(id(program))
        if form is None:
            form = self._forms[id(program)] = _Forms(program, self._compiler)
        given = _Given(values, shared, buffers)
        if not self.training:
            return self._evaluate(form, given)
        if program.recompute is Recompute.NONE or not torch.is_grad_enabled():
            return self._run(form, given, seed, weight_gradients)
        # Running a second time must neither see nor repeat what the first run did to buffers (BatchNorm
        # statistics).
        before = {name: buffers[name].clone() for name in sorted(program.mutated_buffers)}
        keeping = KeepingAxis(self._axis) if form.is_selective else None
        runs = 0

        def run(*arguments: Tensor) -> tuple[Tensor, ...]:
            nonlocal runs
            runs += 1
            seen = buffers if runs == 1 else {**buffers, **{k: v.clone() for k, v in before.items()}}
            again = _Given(dict(zip(names, arguments, strict=True)), shared, seen)
            with nullcontext() if keeping is None else keeping.run():
                return self._run(form, again, seed, weight_gradients, keeping)

        names = list(values)
        # Randomness is seeded inside: the generator's state need not be saved.
        with self._saving([values[key] for key in program.batch_reads]):
            result: tuple[Tensor, ...] = checkpoint(
                run, *values.values(), use_reentrant=False, preserve_rng_state=False
            )
        return result

    def _run(
        self,
        form: _Forms,
        given: _Given,
        seed: int,
        weight_gradients: WeightGradients | None,
        keeping: KeepingAxis | None = None,
    ) -> tuple[Tensor, ...]:
        program = form.program
        if program.is_random:
            torch.manual_seed(seed)  # not for nothing: where torch has no GPU, it writes down the call stack
        # What autograd keeps of them for the backward pass must outlast the micro-batches that run before it.
        carried = {name: given.buffers[name].clone() for name in sorted(program.carried_buffers)}
        seen = replace(given, buffers={**given.buffers, **carried}) if carried else given
        arguments = self._arguments(program, seen)
        kept: Iterable[Tensor] | None = None
        if program.recompute is Recompute.NONE:  # else what is saved is decided around both runs
            inputs = zip(program.block.inputs, arguments, strict=True)
            kept = (value for entry, value in inputs if entry.kind is not InputKind.ACTIVATION)
        extra = (weight_gradients,) if program.has_split_backward else ()
        with nullcontext() if kept is None else self._saving(kept):
            module, axis = (form.once, self._axis) if keeping is None else (form.training, keeping)
            results = self._owned(module(axis, *extra, *arguments))
        with torch.no_grad():
            for name, value in carried.items():
                given.buffers[name].copy_(value)
        return results

    def _evaluate(self, form: _Forms, given: _Given) -> tuple[Tensor, ...]:
        # Step counters and the like are written to in the program all the same: not to the model's own.
        copied = {name: given.buffers[name].clone() for name in form.program.mutated_buffers}
        given = replace(given, buffers={**given.buffers, **copied})
        arguments = self._arguments(form.program, given)
        extra = (None,) if form.program.has_split_backward else ()
        return self._owned(form.evaluation(self._axis, *extra, *arguments))

    def _owned(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(own(value) for value in results) if self.clones_views else results

    def _arguments(self, program: BlockProgram, given: _Given) -> list[Tensor]:
        def argument(entry: BlockInput) -> Tensor:
            if entry.kind is InputKind.PARAMETER:
                shared = given.shared.get(entry.source)
                return self._read(entry.source) if shared is None else shared
            if entry.kind is InputKind.BUFFER:
                return given.buffers[entry.source]
            if entry.kind is InputKind.CONSTANT:
                return self._constants[entry.source]
            return given.values[entry.source]

        return [argument(entry) for entry in program.block.inputs]

    def _saving(self, kept: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Around what saves tensors for the backward pass; ``kept`` stay where they are."""
        if self.offloaded is None or not torch.is_grad_enabled():
            return nullcontext()
        return self.offloaded.of_block(kept)

    def _read(self, name: str) -> Tensor:
        return read_parameter(self.weights, name, self._stored[name], self._compute_copies)


def read_parameter(
    owner: Holder, name: str, stored: StoredParameter, compute_copies: Mapping[str, Tensor]
) -> Tensor:
    """A registered parameter as a program wants it: local, in the compute dtype, fused parts flattened."""
    if name in compute_copies:
        return stored.to_program(compute_copies[name])
    return stored.to_program(local_tensor(owner.find(name)))
