"""The operator ILP's table of a block, and how its answer reads as placements and rules.

One table serves every boundary: the nodes of what comes in and of what goes out have one strategy per word,
and ``allowed`` tells which are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopar.sharding.placement import Placement
from autopar.sharding.propagation import BlockSharding
from autopar.sharding.rule import Rule
from autopar.solve.operator_problem import OperatorProblem


@dataclass(frozen=True, slots=True)
class OperatorTable:
    """The ILP's table of a block, and how to read its answer.

    Attributes:
        problem: one node per node of the block's graph, in order; the last one is the graph's output.
        names: of the graph's nodes.
        rules: per call, the rule of each strategy.
        elements: indices of the calls that take an element of a tuple.
        parameters: per parameter, by canonical name: index of its node, and the placement of each strategy.
        used: per parameter, the strategies that some operator can use as they are, without a gather before
            it.
        statistics: buffers that are placed as the weight of their module, with its canonical name.
        inputs: indices of the nodes that stand for activations; their strategies are by input word.
        input_words: words that differ on the block's input, ``replicate`` first.
        output_words: likewise, on its output.
    """

    problem: OperatorProblem
    names: tuple[str, ...]
    rules: Mapping[int, tuple[Rule, ...]]
    elements: frozenset[int]
    parameters: Mapping[str, tuple[int, tuple[Placement, ...]]]
    used: Mapping[str, tuple[int, ...]]
    statistics: Mapping[str, str]
    inputs: tuple[int, ...]
    input_words: tuple[str, ...]
    output_words: tuple[str, ...]

    def allowed(
        self,
        input_word: int | None = None,
        output_word: int | None = None,
        parameters: Mapping[str, Placement] | None = None,
    ) -> dict[int, tuple[int, ...]]:
        """Strategies that are left when words and parameter placements are fixed, where given.

        A placement of a parameter that every operator would have to gather is left only where it is fixed:
        sharding for the sake of memory alone is the data axis's business (ZeRO).

        Args:
            input_word: index of the word.
            output_word: likewise.
            parameters: placement by canonical name.
        """
        found = {self.parameters[name][0]: strategies for name, strategies in self.used.items()}
        if input_word is not None:
            found |= dict.fromkeys(self.inputs, (input_word,))
        if output_word is not None:
            found[len(self.names) - 1] = (output_word,)
        for name, placement in (parameters or {}).items():
            if name in self.parameters:
                index, placements = self.parameters[name]
                found[index] = tuple(i for i, p in enumerate(placements) if p == placement)
        return found

    def word_indices(self, words: tuple[str, str]) -> tuple[int, int]:
        """Input and output word as strategies; one that shards nothing here is ``replicate``, the first."""
        source, target = words
        return (
            self.input_words.index(source) if source in self.input_words else 0,
            self.output_words.index(target) if target in self.output_words else 0,
        )

    def placements(self, chosen: Sequence[int]) -> dict[str, Placement]:
        """Placements of parameters and running statistics, from the strategy of every node."""
        found = {name: placements[chosen[index]] for name, (index, placements) in self.parameters.items()}
        return found | {buffer: found[weight] for buffer, weight in self.statistics.items()}


def strategies_of(
    table: OperatorTable, sharding: BlockSharding, input_word: int, output_word: int
) -> list[int] | None:
    """The strategy per node that a sharding stands for; None if it has none.

    Args:
        input_word: index of the word, which says what the sharding does not.
        output_word: likewise.
    """
    boundary = dict.fromkeys(table.inputs, input_word) | {len(table.names) - 1: output_word}
    found = []
    for index, node in enumerate(table.problem.nodes):
        name = table.names[index]
        if index in table.rules:
            rules, rule = table.rules[index], sharding.rules[name]
            if rule not in rules:
                return None
            found.append(rules.index(rule))
        elif index in boundary or len(node.strategies) == 1:
            found.append(boundary.get(index, 0))
        else:
            texts, text = [s.output for s in node.strategies], str(sharding.placement_of(name))
            if text not in texts:
                return None
            found.append(texts.index(text))
    return found
