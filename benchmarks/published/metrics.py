"""How far predictions are from measurements, and whether they rank plans alike."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, median


def mean_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean of |predicted / measured - 1| (MAPE, as a fraction)."""
    return fmean(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))


def bias(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean of predicted / measured - 1."""
    return fmean(p / m - 1 for p, m in zip(predicted, measured, strict=True))


def scalar(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """The factor on all predictions that makes half of them too large: the median of measured / predicted."""
    return median(m / p for p, m in zip(predicted, measured, strict=True))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where one side is constant."""
    a, b = _ranks(first), _ranks(second)
    mean_a, mean_b = fmean(a), fmean(b)
    together = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return together / spread if spread else 0.0


def pick_regret(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """What the plan predicted to be the best loses against the best: its measured time / the least - 1."""
    picked = min(range(len(predicted)), key=lambda i: predicted[i])
    return measured[picked] / min(measured) - 1


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    first = {value: i for i, value in reversed(list(enumerate(order)))}
    last = {value: i for i, value in enumerate(order)}
    return [(first[value] + last[value]) / 2 for value in values]
