"""What ranks exchange bounds every plan of a family, by tables of its own micro-batch and of larger ones."""

import random

import pytest

from autopar.solve.candidates import families, meshes
from autopar.solve.floors import Floors
from tests.solve.brute_force import shortest_steps
from tests.solve.fake_choices import random_case


@pytest.mark.parametrize("seed", range(1000, 1120))
def test_no_plan_of_a_family_is_quicker_than_what_it_exchanges(seed: int) -> None:
    case = random_case(random.Random(seed))
    space, job = case.space, case.job
    legal = meshes(job.cluster.num_devices, space.num_blocks, case.tensor_degrees, space.pins)
    floors = Floors(case.choices, space, job, lambda text: None)
    every = list(families(job.global_batch, legal, space.pins))
    for family in every:
        floors.note(family)
    shortest = shortest_steps(case)
    for family in sorted(every, key=lambda family: -family.micro_batch):
        largest = max(f.micro_batch for f in every if f.tensor == family.tensor)
        may_come_nearer = True
        while may_come_nearer:
            least_s = shortest.get(family, float("inf"))
            for worth_s in (1.0001 * least_s, 1.2 * least_s, float("inf")):
                assert floors.exchange_s(family, worth_s) <= least_s * (1 + 1e-9)
            assert floors.scaled(family)[0] <= shortest.get(family, float("inf")) * (1 + 1e-9)
            may_come_nearer = floors.come_nearer(family, largest)
