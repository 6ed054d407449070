"""From the flags of ``plan`` to a finished plan; ``verify`` takes this way too when it is given a model."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autopar.cli.collection import collect_seldom
from autopar.cli.devices_choice import (
    choose_cluster,
    memory_limit_bytes,
    on_cluster,
    reference_to,
    tell_if_above,
)
from autopar.cli.files import existing_file
from autopar.cli.flags import AUTO, flag_constraints, model_arguments
from autopar.cli.outcome import tell
from autopar.cli.watching import waiting, watching
from autopar.plan.decisions import Plan
from autopar.plan.merge import merge
from autopar.plan.pins import parse_sets
from autopar.plan.read import read_plan

if TYPE_CHECKING:
    from autopar.capture.target import ModelSource
    from autopar.hardware.cluster import Cluster
    from autopar.planner.like import OldLine
    from autopar.planner.request import PlanRequest, PlanResult


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan that was made, with what it was made from.

    Attributes:
        old_lines: what became of the hand-made lines of the plan of ``--like``.
    """

    result: PlanResult
    source: ModelSource
    cluster: Cluster
    old_lines: tuple[OldLine, ...] = ()


def make_plan_of(args: argparse.Namespace, target: str, default_device: str | None = None) -> Planned:
    """Plans a model target under the flags of ``plan``.

    Raises:
        AutoparError: whatever is wrong with flags, files, model or constraints, or that nothing fits.
    """
    constraints = read_constraints(args)
    like = getattr(args, "like", None)  # not of every verb that plans
    old = None if like is None else read_plan(existing_file(like, "--like"))
    if old is not None:
        constraints = replace(
            constraints, model=constraints.model or old.model, cluster=constraints.cluster or old.cluster
        )
    cluster, choice = choose_cluster(args, constraints, default_device)
    if choice and not args.quiet:
        tell(choice)
    origin = constraints.model
    limit_bytes = memory_limit_bytes(args, constraints)
    tell_if_above(limit_bytes, cluster)
    constraints = merge(replace(on_cluster(args, constraints, cluster, limit_bytes), model=None))
    arguments = model_arguments(args.arg)
    if origin is not None and _is_same_target(origin.source, target):
        arguments = {**origin.args, **arguments}  # a plan that is completed stays about its own model

    collect_seldom()
    with waiting(args, "loading the model"):
        from autopar.capture.target import load_target

        source = load_target(target, arguments)

    from autopar.planner.request import PlanRequest

    request = PlanRequest(
        source=source,
        cluster=cluster,
        memory_limit_bytes=limit_bytes,
        constraints=constraints,
        top=args.top,
        time_limit_s=args.time_limit,
        effort=args.effort,
        seed=args.seed,
    )
    result, lines = _searched(args, request, old)
    plan = replace(result.plan, cluster=reference_to(cluster, limit_bytes))
    if old is None and origin is not None and not args.quiet:
        assert plan.model is not None
        if origin.fingerprint not in (None, plan.model.fingerprint):
            tell("note: the constraints were written for another model than this one; planned for this one")
    return Planned(replace(result, plan=plan), source, cluster, lines)


def _searched(
    args: argparse.Namespace, request: PlanRequest, old: Plan | None
) -> tuple[PlanResult, tuple[OldLine, ...]]:
    """What the planner finds, and what became of the lines of an old plan; tells on the way."""
    from autopar.planner.best_batch import plan_best_batch
    from autopar.planner.like import plan_like
    from autopar.planner.planner import make_plan

    lines: tuple[OldLine, ...] = ()
    with watching(args) as watcher:
        if old is not None:
            result, lines = plan_like(request, old, watcher.doing, watcher.news)
        elif args.batch == AUTO:
            result = plan_best_batch(request, watcher.doing, watch=watcher.news)
        else:
            result = make_plan(request, watcher.doing, watch=watcher.news)
    if not (args.quiet or args.verbose):  # the watcher tells everything
        for note in result.notes:
            tell(note)
    if not args.quiet:
        for line in lines:
            tell(str(line))
    return result, lines


def read_constraints(args: argparse.Namespace) -> Plan:
    """Everything that ``--set``, ``--batch`` and the like, and ``--with`` fix, as one partial plan.

    Raises:
        UsageError: a flag is wrong, or a file is not there.
        PlanError: a file is wrong, or two constraints contradict each other.
    """
    files = [read_plan(existing_file(path, "--with")) for path in args.with_files]
    return merge(parse_sets(args.sets), *flag_constraints(args.batch, args.optimizer, args.precision), *files)


def _is_same_target(one: str, other: str) -> bool:
    return one == other or os.path.normpath(one) == os.path.normpath(other)
