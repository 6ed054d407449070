"""Which words may flow between the blocks of a chain, and which pairs of them are worth costing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Words = tuple[str, str]
"""What flows into a block and out of it."""

# Words that may flow in a chain that is tried.
_WORD_SETS = (
    ("replicate", "sequence", "batch"),
    ("replicate", "sequence"),
    ("replicate", "batch"),
    ("replicate",),
)


def pairs_worth_costing(
    priced: Sequence[Mapping[Words, Sequence[float]]], kind_of_block: Sequence[int], num_prices: int
) -> list[tuple[Words, ...]]:
    """Per kind, the pairs of words that are worth costing: those on a best chain of words.

    One best chain for every price of memory and every set of words that may flow, so that each word has its
    chance: the rest would only be taken where two words meet more dearly than they need to.

    Args:
        priced: per kind and pair of words, the objective by price.
        kind_of_block: along the chain.
    """
    worth: list[dict[Words, None]] = [{} for _ in priced]
    split_logits = tuple(
        dict.fromkeys(w for pairs in priced for pair in pairs for w in pair if w.startswith("shard("))
    )
    for words in (*((*words, *split_logits) for words in _WORD_SETS if split_logits), *_WORD_SETS):
        for price in range(num_prices):
            for kind, pair in _best_chain(priced, kind_of_block, words, price):
                worth[kind][pair] = None
    return [tuple(pairs) for pairs in worth]


def _best_chain(
    priced: Sequence[Mapping[Words, Sequence[float]]],
    kind_of_block: Sequence[int],
    words: Sequence[str],
    price: int,
) -> list[tuple[int, Words]]:
    """Kind and words of every block on the cheapest chain of words; empty where there is none.

    Args:
        words: that may flow, beside those that pins leave no choice in.
    """
    reached: dict[str, tuple[float, tuple[tuple[int, Words], ...]]] = {"replicate": (0.0, ())}
    for kind in kind_of_block:
        after: dict[str, tuple[float, tuple[tuple[int, Words], ...]]] = {}
        free = {pair: costs for pair, costs in priced[kind].items() if set(pair) <= set(words)}
        for (source, target), costs in (free or priced[kind]).items():
            if source not in reached or price >= len(costs):
                continue
            cost = reached[source][0] + costs[price]
            if target not in after or cost < after[target][0]:
                after[target] = (cost, (*reached[source][1], (kind, (source, target))))
        reached = after
    return list(min(reached.values(), key=lambda way: way[0])[1]) if reached else []
