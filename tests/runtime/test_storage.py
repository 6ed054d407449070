"""Stored forms of parameters: fused parts, pieces of tensor ranks, and back."""

import pytest
import torch

from autopar.capture.model_graph import ParameterSpec, TensorSpec
from autopar.errors import PlanError
from autopar.runtime.storage import store
from autopar.runtime.views import is_view, own
from autopar.sharding.placement import REPLICATE, Shard


def spec(*shape, fused=None):
    return ParameterSpec("w", TensorSpec(shape, torch.float32), fused_dims=fused)


@pytest.mark.parametrize(
    ("shape", "fused", "placement", "stored_shape", "stored_dim"),
    [
        ((6, 4), None, REPLICATE, (6, 4), None),
        ((6, 4), None, Shard(1), (6, 4), 1),
        ((12, 4), {0: 3}, REPLICATE, (3, 4, 4), None),
        ((12, 4), {0: 3}, Shard(0, 3), (3, 4, 4), 1),
        ((12, 4), {0: 3}, Shard(1), (3, 4, 4), 2),
        ((4, 12), {1: 2}, Shard(1, 2), (4, 2, 6), 2),
        ((12,), {0: 3}, Shard(0, 3), (3, 4), 1),
        ((), None, REPLICATE, (1,), None),  # FSDP takes no parameter without dims
    ],
)
def test_pieces_put_together_give_the_whole(shape, fused, placement, stored_shape, stored_dim):
    form = store(spec(*shape, fused=fused), placement, 2)
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    assert form.stored_shape == stored_shape and form.stored_dim == stored_dim
    pieces = [form.local_piece(whole, rank) for rank in range(2)]
    assert all(tuple(piece.shape) == form.local_shape for piece in pieces)
    stored = pieces[0] if stored_dim is None else torch.cat(pieces, stored_dim)
    assert torch.equal(form.to_original(stored), whole)


def test_program_sees_the_piece_of_every_fused_part():
    form = store(spec(12, 1, fused={0: 3}), Shard(0, 3), 2)
    local = form.to_program(form.local_piece(torch.arange(12).view(12, 1), 1))
    assert local.flatten().tolist() == [2, 3, 6, 7, 10, 11]


def test_a_cut_across_fused_parts_is_refused():
    with pytest.raises(PlanError, match=r"'w' has 3 fused part\(s\) along dim 0, .* write shard\(0, 3\)"):
        store(spec(12, 4, fused={0: 3}), Shard(0), 2)


def test_a_dim_that_does_not_divide_is_refused():
    with pytest.raises(PlanError, match="'w' has 6 elements along dim 0, which do not divide by 4"):
        store(spec(6, 4), Shard(0), 4)


def test_views_are_recognised_and_copied():
    base = torch.ones(4, 4, requires_grad=True) * 2
    assert is_view(base.view(16)) and not is_view(base)
    assert own(base) is base and not is_view(own(base.view(16)))
