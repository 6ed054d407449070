"""Operators on shards of a vocabulary refuse what plain torch refuses; ignored labels count for nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autopar.lower.local_operators import cross_entropy_vocab, embedding_vocab
from tests.lower.ranks import ThreadedAxis, run_on_ranks

SIZE, VOCABULARY = 2, 8


@pytest.mark.parametrize("token", [-1, VOCABULARY, 99])
def test_a_token_outside_of_the_vocabulary_is_an_error(token: int) -> None:
    rows, tokens = torch.rand(VOCABULARY, 3), torch.tensor([0, 5, token])

    def look_up(axis: ThreadedAxis) -> Tensor:
        return embedding_vocab(axis, rows.chunk(SIZE)[axis.rank], tokens)

    with pytest.raises(IndexError, match="out of range"):
        run_on_ranks(SIZE, look_up)


@pytest.mark.parametrize("label", [-1, VOCABULARY, 99])
def test_a_label_outside_of_the_classes_is_an_error(label: int) -> None:
    logits, labels = torch.rand(3, VOCABULARY), torch.tensor([0, 5, label])

    def loss(axis: ThreadedAxis) -> Tensor:
        return cross_entropy_vocab(axis, logits.chunk(SIZE, 1)[axis.rank], labels)

    with pytest.raises(RuntimeError, match="out of bounds"):
        run_on_ranks(SIZE, loss)


@pytest.mark.parametrize("ignored", [-100, -1, 2, 7])
def test_ignored_labels_count_for_nothing(ignored: int) -> None:
    logits, labels = torch.rand(4, VOCABULARY, dtype=torch.float64), torch.tensor([0, 5, ignored, 6])
    whole = logits.clone().requires_grad_()
    expected = F.cross_entropy(whole, labels, ignore_index=ignored)
    expected.backward()
    assert whole.grad is not None

    def loss(axis: ThreadedAxis) -> tuple[Tensor, Tensor]:
        own = logits.chunk(SIZE, 1)[axis.rank].clone().requires_grad_()
        value = cross_entropy_vocab(axis, own, labels, ignore_index=ignored)
        return value.detach(), torch.autograd.grad(value, own)[0]

    found = run_on_ranks(SIZE, loss)
    for value, _ in found:
        torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found], 1), whole.grad)
