"""Prints which candidates a search looks at and solves, in order; ``test_hash_seeds`` runs it."""

import random
import sys

from autopar.plan.decisions import Mesh, Precision
from autopar.solve import climb
from autopar.solve.candidate import Candidate, Job
from autopar.solve.candidates import OuterPins, Space, families, meshes
from autopar.solve.search import search
from autopar.solve.work_queue import Search
from tests.solve.fake_choices import MILLION, FakeChoices, FakeKind, fake_cluster

_NUM_BLOCKS = 12


def main() -> None:
    """Searches a made-up chain that is tight in memory, with little work allowed for neighbours."""
    climb._MOST_WORK = int(sys.argv[1])
    met: list[Candidate] = []
    plain = Search.solve

    def recorded(self: Search, candidate: Candidate, bound_s: float) -> None:
        met.append(candidate)
        plain(self, candidate, bound_s)

    look = climb.Climb._look_s

    def looked(self: climb.Climb, candidate: Candidate) -> float:
        met.append(candidate)
        return look(self, candidate)

    Search.solve = recorded  # type: ignore[method-assign]
    climb.Climb._look_s = looked  # type: ignore[method-assign]
    rng = random.Random(3)
    kinds = [
        FakeKind(2e-3, 2.0, 60 * MILLION, 50 * MILLION, 20 * MILLION, 4 * MILLION, True, 3),
        FakeKind(3e-3, 2.5, 20 * MILLION, 200 * MILLION, 20 * MILLION, 40 * MILLION, True, 3),
    ]
    blocks = tuple(index % 2 for index in range(_NUM_BLOCKS))
    job = Job(fake_cluster(rng, 2, 4), Precision.BF16, "adamw", 64, 2_500 * MILLION)
    pins = OuterPins(Mesh())
    space = Space(pins, _NUM_BLOCKS, 2, 4)
    legal = tuple(families(job.global_batch, meshes(8, _NUM_BLOCKS, (1, 2, 4), pins), pins))
    found = search(FakeChoices(kinds, blocks, ()), legal, space, job, num_alternatives=0)
    assert found is not None
    print(*met, found.best.step_s, sep="\n")


if __name__ == "__main__":
    main()
