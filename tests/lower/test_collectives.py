"""The tensor axis on gloo: every collective and conversion against whole tensors, in every dtype."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from autopar.lower import collectives
from autopar.lower.axis import FakeAxis, ProcessGroupAxis
from autopar.lower.local_operators import own_stream
from autopar.sharding.placement import PARTIAL, REPLICATE, Placement, Shard
from autopar.sharding.redistribution import conversion
from tests.lower.pieces import combine, scatter
from tests.lower.ranks import ThreadedAxis, run_on_ranks

SIZE = 2
PLACEMENTS = [REPLICATE, PARTIAL, Shard(0), Shard(1), Shard(1, 3), Shard(0, 2)]


def run_processes(program: Callable[..., None], folder: Path) -> None:
    mp.start_processes(worker, args=(program, str(folder / "store")), nprocs=SIZE, start_method="fork")


def worker(rank: int, program: Callable[..., None], store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE, timeout=timedelta(seconds=60)
    )
    program(ProcessGroupAxis(dist.group.WORLD))  # type: ignore[arg-type]
    dist.destroy_process_group()


def all_conversions(axis: ProcessGroupAxis) -> None:
    whole = torch.arange(48, dtype=torch.float64).reshape(4, 12).sin()
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64):
        value = (whole * 10).to(dtype)
        for source in PLACEMENTS:
            for wanted in PLACEMENTS:
                check_conversion(axis, value, source, wanted)
    assert int(axis.all_reduce_max(torch.tensor(axis.rank))) == SIZE - 1
    assert axis.all_gather(torch.tensor(axis.rank)).tolist() == list(range(SIZE))


def check_conversion(axis: ProcessGroupAxis, value: Tensor, source: Placement, wanted: Placement) -> None:
    local = scatter(value, source, SIZE)[axis.rank].to(value.dtype)
    for step in conversion(source, wanted, gradient_partial=False):
        local = getattr(collectives, step.function)(axis, local, *step.arguments)
    pieces = list(axis.all_gather(local).unbind(0))
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02}.get(value.dtype, 1e-6)
    torch.testing.assert_close(combine(pieces, wanted), value, rtol=tolerance, atol=tolerance)


def test_conversions_on_gloo(tmp_path: Path) -> None:
    run_processes(all_conversions, tmp_path)


def dropout_streams(axis: ProcessGroupAxis) -> None:
    torch.manual_seed(3)
    ones = torch.ones(64, requires_grad=True)

    def drop(x: Tensor) -> Tensor:
        found: Tensor = own_stream(axis, torch.ops.aten.dropout.default, x, 0.5, True)
        return found

    kept = checkpoint(drop, ones, use_reentrant=False)
    kept.sum().backward()
    assert torch.equal(ones.grad, kept.detach())  # the recomputed mask is the first one
    masks = axis.all_gather(kept.detach())
    assert not torch.equal(masks[0], masks[1])  # ranks draw their own
    after = axis.all_gather(torch.rand(4))
    assert torch.equal(after[0], after[1])  # and stay in step


def test_sharded_dropout_differs_between_ranks_and_repeats_under_recompute(tmp_path: Path) -> None:
    run_processes(dropout_streams, tmp_path)


@pytest.mark.parametrize(
    ("wanted", "gradient_partial"), [*((p, False) for p in PLACEMENTS), (REPLICATE, True)], ids=str
)
@pytest.mark.parametrize("source", PLACEMENTS, ids=str)
def test_conversion_and_its_gradient(source: Placement, wanted: Placement, gradient_partial: bool) -> None:
    """The value as wanted; the gradient complete in the placement of the value."""
    whole = torch.arange(48, dtype=torch.float64).reshape(4, 12).cos()
    upstream = torch.arange(48, dtype=torch.float64).reshape(4, 12).sin()
    local = scatter(whole, source, SIZE)
    dual = PARTIAL if gradient_partial else wanted if isinstance(wanted, Shard) else REPLICATE
    gradients = scatter(upstream, dual, SIZE)

    def rank(axis: ThreadedAxis) -> tuple[Tensor, Tensor]:
        leaf = local[axis.rank].clone().requires_grad_()
        value = leaf * 1
        for step in conversion(source, wanted, gradient_partial):
            value = getattr(collectives, step.function)(axis, value, *step.arguments)
        value.backward(gradients[axis.rank])
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    ranks = run_on_ranks(SIZE, rank)
    torch.testing.assert_close(combine([value for value, _ in ranks], wanted), whole)
    found = combine([gradient for _, gradient in ranks], source if isinstance(source, Shard) else REPLICATE)
    torch.testing.assert_close(found, upstream)


@pytest.mark.parametrize("wanted", PLACEMENTS, ids=str)
@pytest.mark.parametrize("source", PLACEMENTS, ids=str)
def test_fake_axis_gives_the_shapes_of_a_real_one(source: Placement, wanted: Placement) -> None:
    local = scatter(torch.zeros(4, 12), source, SIZE)[0].to("meta")
    for step in conversion(source, wanted, False):
        local = getattr(collectives, step.function)(FakeAxis(SIZE), local, *step.arguments)
    assert local.shape == scatter(torch.zeros(4, 12), wanted, SIZE)[0].shape
    assert local.is_meta


def test_pieces_of_a_fused_dim_take_a_share_of_every_part() -> None:
    whole = torch.arange(12)
    assert [x.tolist() for x in scatter(whole, Shard(0, 3), 2)] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    assert torch.equal(collectives.from_pieces(collectives.to_pieces(whole, 0, 3, 2), 0, 3), whole)
