"""A random sample of everything that a plan can say about a run, on four ranks: equal to one process."""

import random

import pytest

from autopar.errors import PlanError
from autopar.lower.resolve import resolve
from tests.runtime.expect import assert_equal
from tests.runtime.plans import make_plan
from tests.runtime.test_products import TENSOR
from tests.runtime.world import Case, run_cases, source_and_graph

NUM_CASES = 72
MESHES = ((4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 4, 1), (1, 1, 4))
SCHEDULES = (
    ("1f1b", 1),
    ("gpipe", 1),
    ("interleaved", 2),
    ("interleaved", 3),
    ("zero-bubble", 1),
    ("zbv", 2),
)
ORDERS = (None, "data pipeline tensor", "tensor data pipeline")
OFFLOADS = ("none", "none", "activations", "optimizer", "parameters", "optimizer, activations")


def draw(seed):
    pick = random.Random(seed)
    model = pick.choice(list(TENSOR))
    pipeline, data, tensor = pick.choice(MESHES)
    schedule, virtual = pick.choice(SCHEDULES)
    levels = (0, 1, 2, 3)
    num_stages = pipeline * virtual
    mixed = data > 1 and pick.random() < 0.3
    options = {
        "pipeline": pipeline,
        "data": data,
        "tensor": tensor,
        "order": pick.choice(ORDERS),
        "schedule": schedule,
        "virtual": virtual,
        "num_micro_batches": pick.randint(1, 6),
        "zero": tuple(pick.choice(levels) for _ in range(num_stages)) if mixed else pick.choice(levels),
        "shard_group": pick.choice((2, None)) if data == 4 else None,
        "recompute": pick.choice(("none", "selective", "full")),
        "activations": pick.choice(("replicate", "sequence")) if tensor > 1 else "replicate",
        "offload": pick.choice(OFFLOADS),
        "num_steps": 2,
    }
    if tensor > 1:
        options["lines"] = TENSOR[model]
    return Case(f"{seed}", "verify", model=model, options=options)


def is_refused(case):
    graph = source_and_graph(case)[1]
    options = {key: value for key, value in case.options.items() if key != "num_steps"}
    try:
        resolve(make_plan(graph, **options), graph)
    except PlanError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sample_of_plans_equals_one_process():
    cases = []
    for seed in range(10**4):
        case = draw(seed)
        if not is_refused(case):
            cases.append(case)
        if len(cases) == NUM_CASES:
            break
    wrong = {}
    for begin in range(0, NUM_CASES, 24):
        part = cases[begin : begin + 24]
        found = run_cases(4, part)
        for case in part:
            try:
                assert_equal(found[case.name], 4)
            except AssertionError as error:
                wrong[case.name] = (case.model, case.options, str(error)[:2000])
    assert not wrong
