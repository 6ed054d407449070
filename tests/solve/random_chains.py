"""Random chains, small enough to enumerate."""

import random

from autopar.solve.chain_problem import ChainProblem, Option, Overhead, Shared


def random_chain(rng: random.Random, max_blocks: int = 6) -> ChainProblem:
    words = ("replicate", "sequence")[: rng.randint(1, 2)]
    num_kinds, num_blocks = rng.randint(1, 3), rng.randint(1, max_blocks)
    num_stages = rng.randint(1, min(3, num_blocks))
    m = rng.choice((1, 2, 3, 8))
    num_tables = rng.choice((1, 1, 2))
    sends = {(k, w): rng.choice((0.0, 0.5, 1.0)) for k in range(num_kinds) for w in words}

    def option(kind: int) -> Option:
        source, target = rng.choice(words), rng.choice(words)
        return Option(
            source,
            target,
            rng.choice((1.0, 2.0, 3.5, 5.0, 7.25)) + rng.random() * 0.1,
            rng.randint(0, 12),
            rng.randint(4, 12),
            rng.randint(0, 9),
            sends[kind, target],
        )

    tables = tuple(
        tuple(
            (
                Option(words[0], words[0], 9.0, 1, 6, 3, sends[k, words[0]]),
                *(option(k) for _ in range(rng.randint(0, 3))),
            )
            for k in range(num_kinds)
        )
        for _ in range(num_tables)
    )
    shared = ()
    if num_blocks > 1 and rng.random() < 0.4:
        members = tuple(sorted(rng.sample(range(num_blocks), rng.randint(2, min(3, num_blocks)))))
        shared = (
            Shared(members, rng.randint(1, 4), rng.choice((0.0, 0.5)), Overhead(1, 1, rng.randint(0, 5))),
        )
    overheads: tuple[tuple[Overhead, ...], ...] = ()
    if rng.random() < 0.4:
        overheads = tuple(
            tuple(
                Overhead(rng.randint(1, 4), rng.randint(1, 4), rng.randint(5, 15)) for _ in range(num_kinds)
            )
            for _ in range(num_tables)
        )
    elif shared:
        shared = (Shared(shared[0].blocks, shared[0].held_bytes, shared[0].seconds),)
    pinned = None
    if rng.random() < 0.15:
        pinned = (0, *sorted(rng.sample(range(1, num_blocks), num_stages - 1)))
    kinds = sorted(rng.randrange(num_kinds) for _ in range(num_blocks))
    if rng.random() < 0.5:
        rng.shuffle(kinds)
    return ChainProblem(
        tables,
        tuple(kinds),
        tuple(min(m, num_stages - s) for s in range(num_stages)),
        m,
        rng.choice((25, 40, 60, 90, 10_000)),
        tuple(rng.randrange(num_tables) for _ in range(num_stages)) if num_tables > 1 else (),
        shared,
        overheads,
        tuple(rng.choice((0.0, 0.5)) for _ in range(num_blocks)) if rng.random() < 0.3 else (),
        pinned,
    )
