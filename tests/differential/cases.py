"""One differential case: a model file, a plan, and what came of running both sides."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from autopar.capture.model_graph import ModelGraph
from autopar.capture.target import ModelSource
from autopar.plan.decisions import Plan
from autopar.plan.read import parse_plan
from autopar.plan.write import write_plan
from autopar.verify.rank import VerifyOptions, verify_rank
from autopar.verify.without_dropout import without_dropout
from tests.differential.grammar import ModelText, draw_model
from tests.differential.random_plans import adapted, draw_plan
from tests.runtime.world import Case, Raised, run_cases, source_and_graph

TOLERANCE = 1e-9
NUM_RANKS = (2, 2, 2, 4, 4, 4, 4, 8)
PLANS_PER_MODEL = 2
_TIMEOUT_S = 100.0  # a machine may be busy; a rank that fails is noticed at once
_Prepared = tuple[ModelSource, ModelGraph, Plan]
_UNDER = "under the plan\n"


@dataclass(frozen=True)
class Trial:
    """What is run: the model of a seed or a given one, under the plan of the seed or a given text."""

    seed: int
    model: ModelText
    plan: str = ""

    @property
    def chance(self) -> random.Random:
        return random.Random(f"sizes {self.seed}")

    @property
    def num_ranks(self) -> int:
        if self.plan:
            mesh = parse_plan(self.plan).mesh
            return (mesh.pipeline or 1) * (mesh.data or 1) * (mesh.tensor or 1)
        return self.chance.choice(NUM_RANKS)

    @property
    def micro_batch(self) -> int:
        if self.plan:
            return parse_plan(self.plan).micro_batch or 1
        return random.Random(f"micro {self.seed}").choice((2, 2, 3, 4, 4))


@dataclass(frozen=True)
class Outcome:
    """Attributes: error: the worst of loss, gradients and buffers; problem: what went wrong, or ""."""

    trial: Trial
    error: float = 0.0
    problem: str = ""
    plan: str = ""

    def __str__(self) -> str:
        parts = {"model": self.trial.model.source, "plan": self.plan}
        told = "\n".join(f"--- {name}\n{text}" for name, text in parts.items())
        return f"seed {self.trial.seed}: {self.problem}\n{told}"


def trial_of(seed: int) -> Trial:
    """The trial of a seed."""
    return Trial(seed, draw_model(seed // PLANS_PER_MODEL))


def run_trials(trials: Sequence[Trial], folder: Path) -> list[Outcome]:
    """Runs trials, those of equal numbers of ranks together; what fails among others is run again alone."""
    found: dict[int, Outcome] = {}
    for num_ranks in sorted({trial.num_ranks for trial in trials}):
        chosen = [index for index, trial in enumerate(trials) if trial.num_ranks == num_ranks]
        found |= _run({index: trials[index] for index in chosen}, num_ranks, folder)
    return [found[index] for index in range(len(trials))]


def _run(trials: Mapping[int, Trial], num_ranks: int, folder: Path) -> dict[int, Outcome]:
    cases = []
    for index, trial in trials.items():
        source = trial.model.source
        path = folder / f"model_{hashlib.sha256(source.encode()).hexdigest()[:12]}.py"
        path.write_text(source)
        extra = {"seed": trial.seed, "plan": trial.plan, "num_ranks": num_ranks}
        cases.append(
            Case(
                str(index),
                "tests.differential.cases:compare",
                model=str(path),
                micro_batch=trial.micro_batch,
                extra=extra,
            )
        )
    results = run_cases(num_ranks, cases, timeout_s=_TIMEOUT_S)
    found = {index: _outcome(trial, results[str(index)]) for index, trial in trials.items()}
    stopped = {index: trial for index, trial in trials.items() if found[index].problem and len(trials) > 1}
    for index, trial in stopped.items():
        found |= _run({index: trial}, num_ranks, folder)
    return found


def _outcome(trial: Trial, results: Sequence[Any]) -> Outcome:
    raised = [result for result in results if isinstance(result, Raised)]
    causes = [result for result in raised if result.kind != "DistributedError"] or raised
    if causes:
        trace, _, plan = causes[0].trace.partition(_UNDER)
        return Outcome(trial, problem=trace, plan=plan or trial.plan)
    if any(result is None for result in results):
        return Outcome(trial, problem="a rank ended or did not answer", plan=_plan_in(results) or trial.plan)
    report, plan = results[0]["report"], results[0]["plan"]
    errors = [report["worst_loss_error"], report["worst_gradient_error"], report["worst_buffer_error"] or 0.0]
    worst = max(float("inf") if error is None else error for error in errors)
    if report["missing"]:
        return Outcome(trial, float("inf"), f"gradients on one side only: {report['missing']}", plan)
    problem = "" if worst <= TOLERANCE else f"differs: {report}"
    return Outcome(trial, worst, problem, plan)


def _plan_in(results: Sequence[Any]) -> str:
    return next((result["plan"] for result in results if isinstance(result, dict)), "")


# What runs in the server and on its ranks


@lru_cache(maxsize=64)
def _drawn(model: str, args: str, micro_batch: int, seed: int, plan: str, num_ranks: int) -> _Prepared:
    case = Case("", "", model=model, args=json.loads(args), micro_batch=micro_batch)
    source, graph = source_and_graph(case)
    graph, _ = without_dropout(graph)
    drawn = adapted(parse_plan(plan), graph) if plan else draw_plan(graph, model, seed, num_ranks)
    return source, graph, drawn


def prepare(case: Case) -> _Prepared:
    """Captures the model and draws the plan, before the ranks are forked."""
    extra = case.extra
    given = (extra["seed"], extra["plan"], extra["num_ranks"])
    return _drawn(case.model, json.dumps(case.args), case.micro_batch, *given)


def compare(case: Case) -> dict[str, Any]:
    """Loss, gradients and buffers of two steps against one process."""
    source, graph, plan = prepare(case)
    text = write_plan(plan)
    try:
        report = verify_rank(plan, source, graph, VerifyOptions(num_steps=2, timeout_s=_TIMEOUT_S))
    except Exception as error:
        error.add_note(_UNDER + text)
        raise
    return {"report": report and report.to_json(), "plan": text}
