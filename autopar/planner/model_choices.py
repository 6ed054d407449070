"""The choices of a captured model for the search: computed when asked for, kept by everything they depend on.

Blocks of one class under the same constraints are one *kind* and are solved once. A parameter that several
blocks read has one placement: every joint placement of these parameters gives a table of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from autopar.capture.capture import Capture
from autopar.capture.model_graph import Block, ModelGraph
from autopar.cost.blocks import Readings, frozen_parameters, model_flops
from autopar.cost.choice import BlockChoice
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import Plan, Precision, Recompute
from autopar.planner.block_choices import (
    Workbench,
    operator_keys,
    parameter_names,
    sharded_choices,
    whole_choices,
    whole_seconds,
)
from autopar.planner.block_store import BlockKey, BlockStore, SettingKey, placements_key
from autopar.planner.pins import Pins, resolve_pins
from autopar.planner.realise import Realiser, repeated_calls
from autopar.planner.several_blocks import carried_bytes, shared_parameters, tied_parameters
from autopar.planner.table_solver import NUM_PRICES, BlockPins, TableSolver
from autopar.planner.tabulate import operator_table
from autopar.planner.word_chains import pairs_worth_costing
from autopar.sharding.placement import REPLICATE, Placement
from autopar.sharding.roles import Use, parameter_uses
from autopar.solve.candidate import ChoiceTable

# Joint placements of tied parameters that are tried; beyond, only the largest parameter's are.
_MOST_JOINT_PLACEMENTS = 9
_FEW_KINDS = 6

_ALL_RECOMPUTE = (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Blocks that are solved as one: the first of them stands for all."""

    block: Block
    pins: BlockPins


@dataclass(slots=True)
class _Setting:
    """What is known for one tensor degree, micro-batch and distance of the ranks on the tensor axis."""

    key: SettingKey
    graph: ModelGraph
    stride: int
    kinds: list[_Kind]
    kind_of_block: tuple[int, ...]
    choice_tables: dict[bool, tuple[ChoiceTable, ...]] = field(default_factory=dict)

    @property
    def degree(self) -> int:
        return self.key[0]

    def block_key(self, kind: int) -> BlockKey:
        """What the table of a kind depends on."""
        one = self.kinds[kind]
        return self.key, one.block.index, placements_key(one.pins.placements)


class ModelChoices:
    """Implements ``solve.candidate.Choices`` on a captured model.

    Args:
        store: of the same capture and cluster, to take from and add to.

    Attributes:
        has_store: whether there is one.
    """

    def __init__(
        self,
        capture: Capture,
        cluster: Cluster,
        precision: Precision,
        constraints: Plan,
        store: BlockStore | None = None,
    ) -> None:
        self._capture = capture
        self._cluster = cluster
        self._precision = precision
        self._constraints = constraints
        self._settings: dict[SettingKey, _Setting] = {}
        self._uses: Mapping[str, tuple[Use, ...]] | None = None
        self._repeated: tuple[frozenset[int], ...] = ()
        self._pins: dict[int, Pins] = {}
        self._probe: ModelGraph | None = None
        self._given: dict[tuple[int, int], tuple[ChoiceTable, ...]] = {}
        self.has_store = store is not None
        self._store = store or BlockStore(Readings(cluster))

    @property
    def readings(self) -> Readings:
        """What lowered blocks cost."""
        return self._store.readings

    @property
    def graph(self) -> ModelGraph:
        """The model at the first micro-batch asked for: for everything that does not depend on its size."""
        if self._probe is None:
            self._probe = self._capture.at(self._constraints.micro_batch or 2)
        return self._probe

    @property
    def uses(self) -> Mapping[str, tuple[Use, ...]]:
        """What the parameters are for: the same at every micro-batch."""
        if self._uses is None:
            self._uses = parameter_uses(self.graph)
        return self._uses

    @property
    def num_blocks(self) -> int:
        """Length of the chain."""
        return len(self.graph.blocks)

    @property
    def trainable_elements(self) -> int:
        """Elements of all parameters with a gradient, unsharded."""
        return sum(p.spec.num_elements for p in self.graph.parameters.values() if p.requires_grad)

    def graph_at(self, micro_batch: int) -> ModelGraph:
        """The model at a micro-batch."""
        return self._capture.at(micro_batch)

    def first_of_kind(self, tensor: int, micro_batch: int, block: int) -> Block:
        """The block whose choices a block shares."""
        setting = self._setting(tensor, micro_batch)
        return setting.kinds[setting.kind_of_block[block]].block

    def shards_anything(self, tensor: int) -> bool:
        """Whether a tensor degree divides anything: a dim of a parameter, or the heads along it."""
        setting = self._setting(tensor, self.graph.micro_batch)
        return any(
            len(placements) > 1
            for kind in range(len(setting.kinds))
            for _, placements in self._solver(setting, kind).table.parameters.values()
        )

    def floor_s(self, tensor: int, micro_batch: int) -> float:
        """Least seconds of all blocks: what all operators take on one rank, divided by the ranks."""
        return self._least_sample_s() * micro_batch / tensor

    def tables(
        self, tensor: int, micro_batch: int, tensor_stride: int = 1, *, thorough: bool = False
    ) -> tuple[ChoiceTable, ...]:
        """The choices; one table for every joint placement of the tied parameters.

        Args:
            thorough: whether what is near the best of every block is among them as well.
        """
        thorough = thorough and tensor > 1
        if not thorough and tensor_stride == 1 and (tensor, micro_batch) in self._given:
            return self._given[tensor, micro_batch]
        setting = self._setting(tensor, micro_batch, tensor_stride)
        if thorough not in setting.choice_tables:
            tied_ways = self._tied_placements(setting)
            found = [self._choice_table(setting, tied, thorough) for tied in tied_ways]
            setting.choice_tables[thorough] = tuple(table for table in found if all(table.kinds))
        return setting.choice_tables[thorough]

    def has_tables(self, tensor: int, micro_batch: int) -> bool:
        """Whether these tables are made already."""
        key = tensor, micro_batch, self._cluster.spread(tensor, 1)
        made = key in self._settings and False in self._settings[key].choice_tables
        return made or (tensor, micro_batch) in self._given

    def give(self, tensor: int, micro_batch: int, tables: tuple[ChoiceTable, ...]) -> None:
        """Tables that were made elsewhere."""
        self._given[tensor, micro_batch] = tables

    def _least_sample_s(self) -> float:
        """Least seconds of a sample: FLOPs at peak, or the operators of the whole global batch at once.

        No operator is quicker a sample on fewer samples, or on a piece than on its share of the whole; unless
        rates or blocks were measured.
        """
        most, known = self._constraints.global_batch, self._store.sample_s
        key = (self.graph.micro_batch, most)
        if key not in known:
            known[key] = self._sample_floor_s(most)
        return known[key]

    def _sample_floor_s(self, most: int | None) -> float:
        device, graph = self._cluster.device, self.graph
        frozen = frozen_parameters(graph)
        # One product of the backward pass is sure: inputs of the model want no gradient. Where parameters
        # want none either, none is.
        by_class = {block.class_key: block for block in reversed(graph.blocks)}
        flops_of = {
            key: model_flops(block) * (1 if any(item.source in frozen for item in block.inputs) else 2)
            for key, block in by_class.items()
        }
        flops = sum(flops_of[block.class_key] for block in graph.blocks)
        sample_s = flops / graph.micro_batch / device.peak(self._precision)
        if self._capture.dynamic and most and not device.blocks and device.memory_rates is None:
            whole: dict[str, float] = {}
            blocks = self._capture.at(most).blocks
            for block in blocks:
                if block.class_key not in whole:
                    whole[block.class_key] = whole_seconds(block, device, frozen)
            sample_s = max(sample_s, sum(whole[block.class_key] for block in blocks) / most)
        return sample_s

    def _setting(self, tensor: int, micro_batch: int, stride: int = 1) -> _Setting:
        # Ranks that lie over the nodes alike send as quickly, however far apart they are.
        key = (tensor, micro_batch, self._cluster.spread(tensor, stride))
        if key not in self._settings:
            graph = self._capture.at(micro_batch)
            if tensor not in self._pins:
                self._pins[tensor] = resolve_pins(self._constraints, self.graph, tensor)
            kinds, kind_of_block = self._kinds(graph, self._pins[tensor], tensor)
            self._settings[key] = _Setting(key, graph, stride, kinds, kind_of_block)
        return self._settings[key]

    def _kinds(self, graph: ModelGraph, pins: Pins, tensor: int) -> tuple[list[_Kind], tuple[int, ...]]:
        tied = {name for name, _ in tied_parameters(graph)}
        kinds: list[_Kind] = []
        known: dict[object, int] = {}
        kind_of_block = []
        for block in graph.blocks:
            own = _block_pins(block, pins, tensor, last=block.index == len(graph.blocks) - 1)
            names = parameter_names(block)
            key = (
                block.class_key,
                tuple(own.placements.get(name) for name in names),
                tuple(name if name in tied else None for name in names),
                own.input_word,
                own.output_word,
                own.recompute,
                tuple(own.overrides.get(k) for k in operator_keys(block)) if own.overrides else (),
            )
            if key not in known:
                known[key] = len(kinds)
                kinds.append(_Kind(block, own))
            kind_of_block.append(known[key])
        return kinds, tuple(kind_of_block)

    def _solver(self, setting: _Setting, kind: int) -> TableSolver:
        key = setting.block_key(kind)
        if key not in self._store.solvers:
            facts = self.readings.facts_of(setting.kinds[kind].block).block
            table = operator_table(
                setting.graph,
                setting.kinds[kind].block,
                setting.degree,
                self._cluster,
                self.uses,
                setting.kinds[kind].pins.placements,
                setting.stride,
                facts,
            )
            self._store.solvers[key] = TableSolver(table, self._cluster)
        return self._store.solvers[key]

    def _realiser(self, setting: _Setting, kind: int) -> Realiser:
        key = setting.block_key(kind)
        if key not in self._store.realisers:
            block, table = setting.kinds[kind].block, self._solver(setting, kind).table
            facts = self.readings.facts_of(block).block
            self._repeated = self._repeated or repeated_calls(self.graph)
            repeated = self._repeated[block.index]
            self._store.realisers[key] = Realiser(
                setting.graph, block, setting.degree, table, facts, repeated
            )
        return self._store.realisers[key]

    def _choice_table(self, setting: _Setting, tied: Mapping[str, Placement], thorough: bool) -> ChoiceTable:
        return ChoiceTable(
            tuple(
                self._choices(setting, kind, tied, pairs, thorough and self._matters(setting, kind))
                for kind, pairs in enumerate(self._word_pairs(setting, tied))
            ),
            setting.kind_of_block,
            shared_parameters(setting.graph, tied, setting.degree),
            carried_bytes(setting.graph),
        )

    def _matters(self, setting: _Setting, kind: int) -> bool:
        """Whether a kind is worth a thorough look: of many, only those of several blocks are."""
        return len(setting.kinds) <= _FEW_KINDS or setting.kind_of_block.count(kind) > 1

    def _choices(
        self,
        setting: _Setting,
        kind: int,
        tied: Mapping[str, Placement],
        pairs: tuple[tuple[str, str], ...],
        thorough: bool,
    ) -> tuple[BlockChoice, ...]:
        block, pins = setting.kinds[kind].block, self._kind_pins(setting, kind, tied)
        fixed = placements_key(pins.placements), pins.recompute, tuple(pins.overrides.items())
        key = (setting.block_key(kind), *fixed, pairs, thorough)
        choices = self._store.choices
        if key not in choices:
            frozen = frozen_parameters(setting.graph)
            bench = Workbench(self._cluster, self.readings, frozen, setting.stride)
            if setting.degree == 1:
                choices[key] = whole_choices(setting.graph, block, pins.recompute, bench)
            else:
                solver, realiser = self._solver(setting, kind), self._realiser(setting, kind)
                choices[key] = sharded_choices(
                    setting.graph, block, solver, realiser, pairs, pins, bench, thorough=thorough
                )
        return choices[key]

    def _kind_pins(self, setting: _Setting, kind: int, tied: Mapping[str, Placement]) -> BlockPins:
        """The pins of a kind with the placements of the tied parameters that it reads."""
        block, pins = setting.kinds[kind].block, setting.kinds[kind].pins
        own = {name: tied[name] for name in parameter_names(block) if name in tied}
        return replace(pins, placements={**own, **pins.placements}) if own else pins

    def _word_pairs(
        self, setting: _Setting, tied: Mapping[str, Placement]
    ) -> list[tuple[tuple[str, str], ...]]:
        """Per kind, the pairs of words that are worth costing."""
        if setting.degree == 1:
            return [()] * len(setting.kinds)
        priced = []
        for kind in range(len(setting.kinds)):
            pins, solver = self._kind_pins(setting, kind, tied), self._solver(setting, kind)
            priced.append({words: solver.objectives_s(words, pins) for words in solver.word_pairs(pins)})
        return pairs_worth_costing(priced, setting.kind_of_block, NUM_PRICES)

    def _tied_placements(self, setting: _Setting) -> Iterator[dict[str, Placement]]:
        """Every joint placement of the tied parameters that all their blocks can take."""
        if setting.degree == 1:
            yield {}
            return
        options: dict[str, tuple[Placement, ...]] = {}
        for name, blocks in tied_parameters(setting.graph):
            common: tuple[Placement, ...] | None = None
            for block in blocks:
                kind = setting.kind_of_block[block]
                placements = self._solver(setting, kind).table.parameters[name][1]
                pinned = setting.kinds[kind].pins.placements.get(name)
                allowed = tuple(p for p in placements if pinned is None or p == pinned)
                common = allowed if common is None else tuple(p for p in common if p in allowed)
            options[name] = common or (REPLICATE,)
        joint = 1
        for placements in options.values():
            joint *= len(placements)
        if joint > _MOST_JOINT_PLACEMENTS:
            largest = max(options, key=lambda name: setting.graph.parameters[name].spec.num_elements)
            options = {n: p if n == largest else p[:1] for n, p in options.items()}
        for placements in itertools.product(*options.values()):
            yield dict(zip(options, placements, strict=True))


def _block_pins(block: Block, pins: Pins, tensor: int, *, last: bool) -> BlockPins:
    recompute = pins.recompute.get(block.index)
    input_word = pins.words.get(block.index - 1) if block.index else "replicate"
    output_word = "replicate" if last else pins.words.get(block.index)
    if tensor == 1:
        input_word = output_word = None
    names = parameter_names(block)
    return BlockPins(
        {name: pins.placements[name] for name in names if name in pins.placements and tensor > 1},
        input_word,
        output_word,
        recompute if recompute is not None else _ALL_RECOMPUTE,
        pins.overrides(operator_keys(block)) if tensor > 1 and pins.operators else {},
    )
