"""Models planned on four devices again and again under other pins; each question is answered once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.target import load_target
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.decisions import Plan
from autopar.plan.pins import parse_sets
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest, PlanResult

CLUSTER = cluster_of(load_device("a100-sxm-80gb"), 4)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model and its global batch."""

    target: str
    args: Mapping[str, str | int]
    global_batch: int
    with_baselines: bool = True


@cache
def captured(subject: Subject) -> Capture:
    """The model in bf16."""
    return capture(load_target(subject.target, subject.args), torch.bfloat16)


@cache
def planned(subject: Subject, *sets: str) -> PlanResult:
    """The best plan under pins as ``--set`` writes them."""
    return planned_within(subject, parse_sets(sets))


def planned_within(subject: Subject, constraints: Plan) -> PlanResult:
    """The best plan within any constraints."""
    source = captured(subject)
    request = PlanRequest(
        source.source,
        CLUSTER,
        subject.global_batch,
        constraints=constraints,
        top=1,
        with_baselines=subject.with_baselines,
    )
    return make_plan(request, captured=source)
