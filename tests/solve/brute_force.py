"""Every plan of a made-up case, written apart from the search."""

import itertools
from collections.abc import Iterator

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout
from autopar.cost.step import predict
from autopar.plan.decisions import ScheduleName
from autopar.solve.candidate import ChoiceTable, Family
from tests.solve.fake_choices import FakeCase

OFFLOADS = [
    (),
    ("optimizer",),
    ("parameters",),
    ("activations",),
    ("optimizer", "activations"),
    ("parameters", "activations"),
]


def shortest_steps(case: FakeCase) -> dict[Family, float]:
    """By family, the shortest step over every schedule, ZeRO level, shard group, order, offload, cut and
    choice of every block that fits."""
    best: dict[Family, float] = {}
    for setting in settings(case):
        (p, t, d), b, order = setting[:3]
        stride = 1
        for axis in order[order.index("tensor") + 1 :]:
            stride *= {"pipeline": p, "data": d}[axis]
        table = case.choices._table(t, b, stride)
        family = Family(p, t, d, case.job.global_batch // (d * b), b)
        for layout in layouts(case, setting, table):
            prediction = predict(layout, case.job.cluster, case.job.memory_limit_bytes)
            if prediction.fits:
                best[family] = min(best.get(family, prediction.step_time_s), prediction.step_time_s)
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
                on_host = "parameters" in offload
                if (level > 0 and d == 1 and pins.zero is None and not on_host) or (on_host and level < 3):
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
