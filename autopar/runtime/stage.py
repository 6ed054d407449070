"""One rank's pipeline stage: blocks as submodules, run one after the other on a micro-batch.

A parameter is registered under its original name on the only block that uses it; one that several blocks of
the stage use is registered once, on the stage, and passed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from autopar.lower.axis import TensorAxis
from autopar.lower.compiled import Compiler
from autopar.lower.weight_gradients import WeightGradients
from autopar.runtime.block_module import BlockModule, Holder, read_parameter, register
from autopar.runtime.block_reads import batch_reads, parameter_reads, reads
from autopar.runtime.routes import BlockProgram, Route, make_route
from autopar.runtime.saved_tensors import OffloadedActivations
from autopar.runtime.storage import StoredParameter


class StageModule(nn.Module):
    """Consecutive blocks on one pipeline position.

    Args:
        programs: of the stage's blocks, in order.
        outputs: global names of the values that later stages read and this stage computes; the loss on the
            last.
        parameters: of this stage, by canonical name, with their stored forms.
        buffers: by name.
    """

    def __init__(
        self,
        programs: Iterable[BlockProgram],
        outputs: tuple[str, ...],
        axis: TensorAxis,
        parameters: Mapping[str, tuple[StoredParameter, nn.Parameter]],
        buffers: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        compute_copies: Mapping[str, Tensor],
        compiler: Compiler | None = None,
    ) -> None:
        super().__init__()
        self._stored = {name: stored for name, (stored, _) in parameters.items()}
        self._buffer_values = dict(buffers)
        self._compute_copies = compute_copies
        self._route = make_route(tuple(programs), outputs)
        self._offloaded: OffloadedActivations | None = None
        self.weights = Holder()
        self.idle = Holder()  # parameters that no block reads: they belong to the model and its checkpoints
        self.blocks = nn.ModuleList(
            BlockModule(program, axis, self._stored, constants, compute_copies, compiler)
            for program in self.programs
        )
        self._owners = self._place(parameters)
        self._shared = tuple(name for name, owner in self._owners.items() if owner is self.weights)

    @property
    def route(self) -> Route:
        """What the stage runs in a step."""
        return self._route

    @property
    def programs(self) -> tuple[BlockProgram, ...]:
        """The blocks' programs in order."""
        return tuple(program for program in self._route.programs if program is not None)

    def stored(self, name: str) -> StoredParameter:
        """Stored form of a parameter of this stage."""
        return self._stored[name]

    def named_originals(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under their canonical names."""
        for name, owner in self._owners.items():
            yield name, owner.get_parameter(name)

    def named_state(self) -> Mapping[str, Tensor]:
        """Buffers under their original names."""
        return self._buffer_values

    def offload_activations(self, device: torch.device) -> None:
        """From now on, what blocks save for their backward passes waits in host memory."""
        self._offloaded = OffloadedActivations(device)
        for block in self._block_modules():
            block.offloaded = self._offloaded

    def return_no_views(self) -> None:
        """From now on, blocks return copies of outputs that are views; the last ones are the stage's own."""
        for block in self._block_modules():
            block.clones_views = True

    def block_modules_with_parameters(self) -> list[BlockModule]:
        """Blocks that own parameters: what data parallelism wraps."""
        return [block for block in self._block_modules() if any(True for _ in block.parameters())]

    def forward(
        self,
        values: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        seeds: tuple[int, ...],
        weight_gradients: WeightGradients | None = None,
        route: Route | None = None,
    ) -> tuple[Tensor, ...]:
        """Runs the blocks on one micro-batch.

        Args:
            values: activations from earlier stages by global name.
            batch: entries of the micro-batch by key.
            seeds: one per block.
            weight_gradients: where the backward pass leaves them, if it is split.
            route: what to run; default: as in a step.

        Returns:
            The outputs of the route, in order.
        """
        route = route or self._route
        shared = {
            name: read_parameter(self.weights, name, self._stored[name], self._compute_copies)
            for name in self._shared
        }
        known = dict(values)
        if self._offloaded is not None:
            self._offloaded.begin()
        for block, program, seed, dropped in zip(
            self._block_modules(), route.programs, seeds, route.dropped_after, strict=True
        ):
            if program is None:
                continue
            given = {name: known[name] for name in reads(program.block)}
            given.update({key: batch[key] for key in batch_reads(program.block)})
            results = block(given, shared, self._buffer_values, seed, weight_gradients, program)
            known.update(zip(program.block.outputs, results, strict=True))
            for name in dropped:
                del known[name]
        return tuple(known[name] for name in route.outputs)

    def touch(self, value: Tensor) -> Tensor:
        """Computes nothing: a pass through here lets FSDP's hooks see gradients that were added since."""
        return value * 1

    def _block_modules(self) -> list[BlockModule]:
        return [block for block in self.blocks if isinstance(block, BlockModule)]

    def _place(self, parameters: Mapping[str, tuple[StoredParameter, nn.Parameter]]) -> dict[str, nn.Module]:
        users: dict[str, list[BlockModule]] = {name: [] for name in parameters}
        for block, program in zip(self._block_modules(), self.programs, strict=True):
            for name in parameter_reads(program.block):
                users[name].append(block)
        owners: dict[str, nn.Module] = {}
        for name, (_, parameter) in parameters.items():
            if not users[name]:
                owners[name] = self.idle
            elif len(users[name]) == 1:
                owners[name] = users[name][0].weights
            else:
                owners[name] = self.weights
            register(owners[name], name, parameter)
        return owners
