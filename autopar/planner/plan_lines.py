"""From decisions to the lines of a plan: the fewest patterns that say the same.

Lines of the constraints come first, as they were given; the first match wins, so that they stay law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopar.capture.model_graph import Block, ModelGraph
from autopar.lower.resolve import names_operator
from autopar.plan.decisions import PatternLine
from autopar.plan.patterns import first_match, generalised, matches
from autopar.plan.ranges import compact, pattern_lines
from autopar.sharding.placement import Placement
from autopar.sharding.roles import Use
from autopar.sharding.words import WordError, placement_of_word, role_for, word_of

_REST = PatternLine("*", "replicate")


def block_lines(pinned: Sequence[PatternLine], words: Mapping[str, str]) -> tuple[PatternLine, ...]:
    """Lines that give every block its word."""
    free = {name: word for name, word in words.items() if first_match(pinned, name) is None}
    if not free:
        return tuple(pinned)
    lines = (*pinned, *pattern_lines(free))
    if _says(lines, words):
        return lines
    # A block's name may be the beginning of another's: the longer one first.
    return (*pinned, *sorted(pattern_lines(free), key=lambda line: -line.pattern.count(".")))


def closed_lines(pinned: Sequence[PatternLine], words: Mapping[str, str]) -> tuple[PatternLine, ...]:
    """The lines with those that left a choice (``selective | full``) replaced by what was chosen."""
    lines: list[PatternLine] = []
    for line in pinned:
        if "|" not in line.word:
            lines.append(line)
            continue
        own = {name: word for name, word in words.items() if first_match(pinned, name) == line}
        if len(set(own.values())) == 1:
            lines.append(PatternLine(line.pattern, next(iter(own.values()))))
        elif own:
            lines += pattern_lines(own)
    return tuple(lines)


def _says(lines: Sequence[PatternLine], words: Mapping[str, str]) -> bool:
    found = {name: first_match(lines, name) for name in words}
    return all(line is not None and line.word == words[name] for name, line in found.items())


def tensor_lines(
    pinned: Sequence[PatternLine],
    placements: Mapping[str, Placement],
    graph: ModelGraph,
    uses: Mapping[str, tuple[Use, ...]],
    degree: int,
) -> tuple[PatternLine, ...]:
    """Lines that place every parameter, whole modules at once where one word does."""
    writer = _TensorLines(placements, graph, uses, degree)
    free = [name for name in placements if not writer.is_named(pinned, name)]
    lines = (*pinned, *writer.module_lines(free))
    if all(writer.says(lines, name) for name in free):
        return lines
    exact = tuple(PatternLine(name, writer.word(name)) for name in free)
    return (*pinned, *(line for line in exact if line.word != "replicate"), _REST)


class _TensorLines:
    def __init__(
        self,
        placements: Mapping[str, Placement],
        graph: ModelGraph,
        uses: Mapping[str, tuple[Use, ...]],
        degree: int,
    ) -> None:
        self._placements = placements
        self._graph = graph
        self._uses = uses
        self._degree = degree

    def is_named(self, lines: Sequence[PatternLine], name: str) -> bool:
        names = (name, *self._graph.parameters[name].aliases)
        return any(matches(line.pattern, n) for line in lines for n in names)

    def word(self, name: str) -> str:
        spec = self._graph.parameters[name]
        return word_of(self._placements[name], spec, role_for(name, self._uses.get(name, ())))

    def gives(self, name: str, alias: str, word: str) -> bool:
        """Whether a word gives a parameter, under one of its names, the placement wanted."""
        spec = self._graph.parameters[name]
        role = role_for(alias, self._uses.get(name, ()))
        try:
            placed = placement_of_word(word, spec.spec.shape, spec.fused_dims, role, self._degree)
        except WordError:
            return False
        return placed == self._placements[name]

    def says(self, lines: Sequence[PatternLine], name: str) -> bool:
        """Whether lines place a parameter as wanted, read as the lowering reads them."""
        for line in lines:
            for alias in (name, *self._graph.parameters[name].aliases):
                if matches(line.pattern, alias):
                    return self.gives(name, alias, line.word)
        return False

    def module_lines(self, names: Sequence[str]) -> tuple[PatternLine, ...]:
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(generalised(name.rpartition(".")[0]), []).append(name)
        lines: list[PatternLine] = []
        for pattern, members in groups.items():
            lines.extend(self._group_lines(pattern, members))
        lines = [line for line in lines if line.word != "replicate"]
        lines.sort(key=lambda line: -line.pattern.count("."))
        order = {name: position for position, name in enumerate(names)}
        lines.sort(key=lambda line: min((order[n] for n in names if matches(line.pattern, n)), default=0))
        return (*lines, _REST)

    def _group_lines(self, pattern: str, members: Sequence[str]) -> list[PatternLine]:
        """Lines of the parameters directly inside the modules that a pattern names."""
        for word in dict.fromkeys(self.word(name) for name in members):
            if pattern and all(self.gives(name, name, word) for name in members):
                return [PatternLine(pattern, word)]
        by_parameter: dict[str, list[str]] = {}
        for name in members:
            by_parameter.setdefault(generalised(name), []).append(name)
        lines: list[PatternLine] = []
        for parameter, same in by_parameter.items():
            words = {name: self.word(name) for name in same}
            if len(set(words.values())) == 1:
                lines.append(PatternLine(parameter, words[same[0]]))
                continue
            for word in dict.fromkeys(words.values()):
                entries = compact(name for name in same if words[name] == word)
                lines.extend(PatternLine(entry, word) for entry in entries)
        return lines


def operator_lines(
    pinned: Sequence[PatternLine], overrides: Sequence[Mapping[str, str]], keys: Sequence[Sequence[str]]
) -> tuple[PatternLine, ...]:
    """Lines of the operators that run otherwise than the propagation would have them.

    Args:
        overrides: per block, rule text by operator key.
        keys: per block, all its operator keys.
    """
    wanted = {key: text for own in overrides for key, text in own.items()}
    free = {k: t for k, t in wanted.items() if not any(names_operator(line.pattern, k) for line in pinned)}
    known = [key for own in keys for key in own]
    lines: list[PatternLine] = []
    done: set[str] = set()
    for key, text in free.items():
        if key in done:
            continue
        pattern = generalised_key(key)
        named = [other for other in known if names_operator(pattern, other)]
        if all(free.get(other) == text for other in named):
            lines.append(PatternLine(pattern, text))
            done.update(named)
        else:
            lines.append(PatternLine(key, text))
    return (*pinned, *lines)


def generalised_key(key: str) -> str:
    """An operator key with ``*`` for every number in its module: ``blocks.*.attn:linear#0``."""
    module, _, operator = key.rpartition(":")
    return f"{generalised(module)}:{operator}"


def renamed_overrides(
    overrides: Mapping[str, str], first: Sequence[str], own: Sequence[str]
) -> dict[str, str]:
    """Overrides of a class's first block under the operator keys of another of its blocks."""
    position = {key: index for index, key in enumerate(first)}
    return {own[position[key]]: text for key, text in overrides.items()}


def stage_names(first_blocks: Sequence[int], blocks: Sequence[Block]) -> tuple[tuple[str, ...], ...]:
    """Names of the blocks of every stage."""
    ends = [*first_blocks[1:], len(blocks)]
    return tuple(
        tuple(block.name for block in blocks[first:end])
        for first, end in zip(first_blocks, ends, strict=True)
    )
