"""Measured times of a block class, as ``autopar profile --model`` stores them in a cost model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How many times as long as thought operators take, in each pass."""

    forward: float = 1.0
    backward: float = 1.0


@dataclass(frozen=True, slots=True)
class MeasuredBlock:
    """One block class at one micro-batch, run whole (tensor degree 1, no recompute) on one device.

    Attributes:
        class_key: ``Block.class_key``; depends on structure, shapes, dtypes and micro-batch.
        precision: compute dtype, ``bf16``, ``fp16`` or ``fp32``.
        forward_s: median.
        backward_s: median.
        name: of a block of the class, for people.
        update_s: median, of AdamW on all of its parameters; None: not measured.
        sharded: by tensor degree, of the operators that are divided among so many ranks.
    """

    class_key: str
    precision: str
    forward_s: float
    backward_s: float
    name: str = ""
    sharded: Mapping[int, Slowdown] = field(default_factory=dict)
    update_s: float | None = None
