"""One rank's pipeline stage: blocks as submodules, run one after the other on a micro-batch.

A parameter is registered under its original name on the only block that uses it; one that several blocks of
the stage use is registered once, on the stage, and passed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from autopar.lower.axis import TensorAxis
from autopar.lower.compiled import Compiler
from autopar.lower.weight_gradients import WeightGradients
from autopar.runtime.block_group import BlockGroup, BlockRun, GroupWork, gathered_together
from autopar.runtime.block_module import BlockModule, Holder, read_parameter, register
from autopar.runtime.block_reads import parameter_reads
from autopar.runtime.routes import BlockProgram, Route, make_route
from autopar.runtime.saved_tensors import OffloadedActivations
from autopar.runtime.storage import StoredParameter, local_tensor


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
        blocks = [
            BlockModule(program, axis, self._stored, constants, compute_copies, compiler)
            for program in self.programs
        ]
        self.groups = nn.ModuleList([BlockGroup(blocks)])
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
        for block in self.blocks:
            block.offloaded = self._offloaded

    def return_no_views(self) -> None:
        """From now on, blocks return copies of outputs that are views; the last ones are the stage's own."""
        for block in self.blocks:
            block.clones_views = True

    def group(self) -> list[BlockGroup]:
        """From now on, blocks run in groups that are worth gathering; returns those with parameters."""
        blocks = self.blocks
        sizes_bytes = [sum(local_tensor(p.detach()).nbytes for p in block.parameters()) for block in blocks]
        groups = [BlockGroup([blocks[i] for i in part]) for part in gathered_together(sizes_bytes)]
        self.groups = nn.ModuleList(groups)
        return [group for group in groups if any(True for _ in group.parameters())]

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
        runs = map(BlockRun._make, zip(route.programs, seeds, route.dropped_after, strict=True))
        for group in self._block_groups():
            own = tuple(islice(runs, len(group.blocks)))
            read = {name for run in own if run.program for name in run.program.reads}
            given = {name: value for name, value in known.items() if name in read}
            work = GroupWork(batch, shared, self._buffer_values, own, weight_gradients)
            known.update(group(given, work))
            for name in (name for run in own for name in run.dropped):
                known.pop(name, None)
        return tuple(known[name] for name in route.outputs)

    def touch(self, value: Tensor) -> Tensor:
        """Computes nothing: a pass through here lets FSDP's hooks see gradients that were added since."""
        return value * 1

    @property
    def blocks(self) -> tuple[BlockModule, ...]:
        """In order."""
        return tuple(block for group in self._block_groups() for block in group.members())

    def _block_groups(self) -> list[BlockGroup]:
        return [group for group in self.groups if isinstance(group, BlockGroup)]

    def _place(self, parameters: Mapping[str, tuple[StoredParameter, nn.Parameter]]) -> dict[str, nn.Module]:
        users: dict[str, list[BlockModule]] = {name: [] for name in parameters}
        for block, program in zip(self.blocks, self.programs, strict=True):
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
