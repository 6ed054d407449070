"""Any order of the axes over the ranks, and ZeRO inside shard groups: each equal to one process."""

from itertools import permutations

import pytest

from autopar.plan.decisions import MESH_AXES
from tests.runtime.expect import assert_clipped, assert_equal
from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, check, run_cases

ORDERS = [" ".join(order) for order in permutations(MESH_AXES)]
MESHES = {"pipeline-data": (2, 2, 1), "pipeline-tensor": (2, 1, 2), "data-tensor": (1, 2, 2)}


def case(name, body="verify", *, pipeline=1, data=1, tensor=1, **options):
    lines = GPT_TENSOR if tensor > 1 else ()
    shape = {"pipeline": pipeline, "data": data, "tensor": tensor, "lines": lines}
    steps = {"num_steps": 1} if body == "verify" else {}
    return Case(name, body, options={**shape, **options, **steps})


# With two axes of more than one rank, an order and its reverse are all that there is.
ORDERED = [
    case(
        f"{mesh}-{order}".replace(" ", "-"),
        pipeline=shape[0],
        data=shape[1],
        tensor=shape[2],
        order=order,
        zero=3 if shape[1] > 1 else 0,
        activations="sequence" if shape[2] > 1 else "replicate",
    )
    for mesh, shape in MESHES.items()
    for order in ("pipeline data tensor", "tensor data pipeline")
]
GROUPED = [
    case(
        f"group-zero{zero}-{recompute}",
        data=4,
        shard_group=2,
        zero=zero,
        recompute=recompute,
        num_micro_batches=3,
    )
    for zero, recompute in ((1, "none"), (2, "full"), (3, "none"))
]
GROUPED.append(case("group-of-one", data=4, shard_group=1, zero=3))
PIECES = [case(f"pieces-{size}", "pieces", data=4, shard_group=size, zero=3) for size in (1, 2, 4)]
CLIP = [case("clip", "clip", data=4, shard_group=2, zero=1, order="data tensor pipeline")]
FOUR = ORDERED + GROUPED + PIECES + CLIP
EIGHT = [
    case("grouped-tensor", data=4, tensor=2, shard_group=2, zero=3, activations="sequence"),
    case("grouped-tensor-zero1", data=4, tensor=2, shard_group=2, zero=1),
    *(
        case(
            order.replace(" ", "-"),
            pipeline=2,
            data=2,
            tensor=2,
            zero=level,
            order=order,
            recompute=recompute,
        )
        for order, level, recompute in zip(
            ORDERS, (0, 1, 2, 3, 1, 3), ("none", "selective", "full") * 2, strict=True
        )
    ),
]


@pytest.mark.parametrize("name", [x.name for x in ORDERED + GROUPED])
def test_four_ranks_equal_one_process(four, name):
    assert_equal(four[name], 4)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_rank_holds_its_part_of_the_shard_group(four, size):
    for held, whole in check(four[f"pieces-{size}"], 4):
        assert held == whole // size


def test_clipping_counts_every_element_once(four):
    assert_clipped(four["clip"], 4)


@pytest.mark.slow
def test_eight_ranks_equal_one_process():
    found = run_cases(8, EIGHT, timeout_s=120)
    for name in found:
        assert_equal(found[name], 8)
