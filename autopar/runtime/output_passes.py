"""Passes that compute tensors of the module's output, and nothing that only the captured loss needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from autopar.capture.module_output import ModuleOutput, OutputTensor
from autopar.errors import UsageError
from autopar.lower.resolve import ResolvedPlan
from autopar.lower.results import CutBlock, cut_chain
from autopar.runtime.block_reads import batch_reads
from autopar.runtime.crossings import Crossing, PlacedBlock, boundary_crossings
from autopar.runtime.executor import Executor
from autopar.runtime.held_stage import HeldStage
from autopar.runtime.links import Links
from autopar.runtime.mesh import RankMesh
from autopar.runtime.not_computed import NotComputed
from autopar.runtime.routes import BlockProgram, block_program, lowered_program, make_route


@dataclass(frozen=True)
class OutputPass:
    """The model, run for some tensors of its output.

    Attributes:
        stages: of this rank, ascending.
        executor: of the forward passes.
        ranks: global name of a value -> position on the pipeline axis where it is computed.
        batch_keys: entries of the batch that any stage reads.
    """

    stages: tuple[HeldStage, ...]
    executor: Executor
    ranks: Mapping[str, int]
    batch_keys: frozenset[str]


class OutputPasses:
    """Builds passes, one for each choice of tensors.

    Args:
        executor: of steps; those of the passes follow its schedule.
        late: names of the parameters whose gradients are left as summands of the tensor ranks.
    """

    def __init__(
        self, resolved: ResolvedPlan, mesh: RankMesh, executor: Executor, late: frozenset[str]
    ) -> None:
        self._resolved = resolved
        self._mesh = mesh
        self._executor = executor
        self._late = late
        self._known: dict[frozenset[str], OutputPass] = {}

    def of(self, tensors: Sequence[OutputTensor]) -> OutputPass:
        """The pass that computes ``tensors``."""
        values = frozenset(tensor.value for tensor in tensors if tensor.value)
        if values not in self._known:
            self._known[values] = self._make(values)
        return self._known[values]

    def _make(self, values: frozenset[str]) -> OutputPass:
        resolved = self._resolved
        marks = {value: mark_name(value) for value in sorted(values)}
        chain = cut_chain(resolved, marks)
        placed = [
            PlacedBlock(cut.block, cut.sharding, decision.stage)
            for cut, decision in zip(chain, resolved.blocks, strict=True)
            if cut is not None
        ]
        crossings = boundary_crossings(placed, resolved.graph.values, resolved.num_stages)
        stages = tuple(
            self._stage(held, chain, crossings, frozenset(marks.values())) for held in self._executor.stages
        )
        rank_of = self._executor.rank_of
        owners = {name: rank_of(x.stage) for x in placed for name in x.block.outputs}
        return OutputPass(
            stages=stages,
            executor=self._executor.like(stages, Links(self._mesh, crossings, rank_of)),
            ranks={value: owners[name] for value, name in marks.items()},
            batch_keys=frozenset(key for x in placed for key in batch_reads(x.block)),
        )

    def _stage(
        self,
        held: HeldStage,
        chain: Sequence[CutBlock | None],
        crossings: Sequence[tuple[Crossing, ...]],
        marks: frozenset[str],
    ) -> HeldStage:
        """A stage of this rank as the pass runs it."""
        programs: list[BlockProgram | None] = []
        for usual in held.module.programs:
            index = usual.block.index
            cut, decision = chain[index], self._resolved.blocks[index]
            if cut is None:
                programs.append(None)
            elif cut.is_whole and not usual.has_split_backward:
                programs.append(usual)
            else:
                lowered = lowered_program(cut.block, cut.sharding, self._mesh.device)
                programs.append(block_program(cut.block, lowered, decision.recompute, self._late, False))
        made_here = {name for program in programs if program for name in program.block.outputs}
        sent = crossings[held.index] if held.index < len(crossings) else ()
        kept = tuple(sorted(marks & made_here))
        return HeldStage(
            index=held.index,
            module=held.module,
            replicas=held.replicas,
            received=crossings[held.index - 1] if held.index else (),
            sent=sent,
            loss=None,
            route=make_route(programs, (*(x.name for x in sent if x.name in made_here), *kept)),
            kept=kept,
        )


def mark_name(value: str) -> str:
    """The name under which a block returns a value of the module's output, whole."""
    return f"output {value}"


def is_held(tensor: OutputTensor) -> bool:
    """Whether the captured graph computes it, or hands it through."""
    return bool(tensor.value or tensor.batch_key)


def computable(output: ModuleOutput | None, given: Collection[str]) -> tuple[OutputTensor | None, ...]:
    """The tensors of a module's output that can be had from the entries of a batch; None for the others.

    Raises:
        UsageError: there are none.
    """
    if output is None:
        raise UsageError("this graph does not say what the module returns; capture it with capture()")
    held = [tensor for tensor in output.tensors if is_held(tensor)]
    if output.tensors and not held:
        NotComputed(output.tensors[0].label).refuse()
    found = tuple(x if x in held and x.needs <= set(given) else None for x in output.tensors)
    if not any(found):
        least = min((tensor.needs - set(given) for tensor in held), key=len, default=frozenset())
        raise UsageError(
            f"model(): the batch lacks {', '.join(repr(key) for key in sorted(least))}; call it as"
            " model(**batch), with the entries that the module's forward reads"
        )
    return found
