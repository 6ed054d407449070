"""The search against a search through everything, written apart from it."""

import itertools
import random
from collections.abc import Iterator

import pytest

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout
from autopar.cost.step import predict
from autopar.plan.decisions import ScheduleName
from autopar.solve.candidate import ChoiceTable, SearchResult
from autopar.solve.candidates import families, meshes
from autopar.solve.search import search
from tests.solve.fake_choices import FakeCase, random_case

CASES = 320
OFFLOADS = [
    (),
    ("optimizer",),
    ("parameters",),
    ("activations",),
    ("optimizer", "activations"),
    ("parameters", "activations"),
]


def found_by(case: FakeCase) -> SearchResult | None:
    """What the search finds."""
    space, job = case.space, case.job
    legal = meshes(job.cluster.num_devices, space.num_blocks, case.tensor_degrees, space.pins)
    return search(case.choices, families(job.global_batch, legal, space.pins), space, job, num_alternatives=2)


def brute_force(case: FakeCase) -> float | None:
    """The shortest step over every mesh, micro-batch, schedule, ZeRO level, shard group, order, offload, cut
    and choice of every block that fits."""
    best = None
    for setting in settings(case):
        order = setting[2]
        p, t, d = setting[0]
        stride = 1
        for axis in order[order.index("tensor") + 1 :]:
            stride *= {"pipeline": p, "data": d}[axis]
        table = case.choices._table(t, setting[1], stride)
        for layout in layouts(case, setting, table):
            prediction = predict(layout, case.job.cluster, case.job.memory_limit_bytes)
            if prediction.fits and (best is None or prediction.step_time_s < best):
                best = prediction.step_time_s
    return best


def settings(case: FakeCase) -> Iterator[tuple]:
    """Every outer setting."""
    pins, job, n = case.space.pins, case.job, case.choices.num_blocks
    devices, nodes = job.cluster.num_devices, job.cluster.nodes
    for t, p in itertools.product(case.tensor_degrees, range(1, n + 1)):
        if devices % (t * p):
            continue
        d = devices // (t * p)
        for b in range(1, job.global_batch + 1):
            if job.global_batch % (d * b):
                continue
            degrees = {"pipeline": p, "data": d, "tensor": t}
            apart = {
                tuple(axis for axis in order if degrees[axis] > 1): order
                for order in itertools.permutations(degrees)
            }
            orders = list(apart.values()) if nodes > 1 else [("pipeline", "data", "tensor")]
            names = [pins.schedule] if pins.schedule else list(ScheduleName)
            for order, name, level, offload in itertools.product(orders, names, range(4), OFFLOADS):
                if pins.zero not in (None, level) or pins.offload not in (None, offload):
                    continue
                if (level > 0 and d == 1 and pins.zero is None) or ("parameters" in offload and level < 3):
                    continue
                if level == 3 and name in (ScheduleName.ZERO_BUBBLE, ScheduleName.ZBV):
                    continue
                many = {ScheduleName.INTERLEAVED: range(2, n + 1), ScheduleName.ZBV: (2,)}.get(name, (1,))
                groups = [0, *(g for g in range(2, d) if d % g == 0)] if level else [0]
                for v, group in itertools.product(many, groups):
                    needless = p == 1 and pins.schedule is None and name != "1f1b"
                    if p * v <= n and not needless:
                        yield (p, t, d), b, order, name, v, level, group, offload


def layouts(case: FakeCase, setting: tuple, table: ChoiceTable) -> Iterator[Layout]:
    """Every cut and every choice of every block."""
    (p, t, d), b, order, name, v, level, group, offload = setting
    n, job = case.choices.num_blocks, case.job
    chains: list[tuple[BlockChoice, ...]] = []
    for chain in itertools.product(*(table.kinds[kind] for kind in table.blocks)):
        words = ["replicate", *(c.output_word for c in chain)]
        if all(c.input_word == w for c, w in zip(chain, words, strict=False)) and words[-1] == "replicate":
            chains.append(chain)
    for cuts in itertools.combinations(range(1, n), p * v - 1):
        edges = [0, *cuts, n]
        for chain in chains:
            yield Layout(
                pipeline=p,
                data=d,
                tensor=t,
                micro_batch=b,
                num_micro_batches=job.global_batch // (d * b),
                schedule=name,
                virtual=v,
                zero=(level,) * (p * v),
                precision=job.precision,
                optimizer=job.optimizer,
                stages=tuple(chain[i:j] for i, j in itertools.pairwise(edges)),
                shared=table.shared,
                carried_bytes=(0,) * (p * v - 1),
                order=order,
                shard_group=group,
                offload=offload,
            )


@pytest.mark.parametrize("seed", range(CASES))
def test_search_equals_a_search_through_everything(seed: int) -> None:
    case = random_case(random.Random(seed))
    expected, result = brute_force(case), found_by(case)
    if expected is None:
        assert result is None
        return
    assert result is not None
    assert result.bound_s <= expected * (1 + 1e-9)
    assert result.best.step_s >= expected * (1 - 1e-9)
    if result.gap == 0:
        assert result.best.step_s == pytest.approx(expected, rel=1e-8)
