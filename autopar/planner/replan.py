"""The same model planned again and again under other constraints: one capture, one set of tables wherever the
constraints leave the tables alone, and one store of what is worked out of blocks."""

from __future__ import annotations

from dataclasses import replace

from autopar.capture.capture import Capture
from autopar.capture.target import ModelSource
from autopar.cost.blocks import Readings
from autopar.errors import InfeasibleError
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import Plan
from autopar.plan.merge import merge
from autopar.planner.block_store import BlockStore
from autopar.planner.legal_families import legal_families
from autopar.planner.model_choices import ModelChoices
from autopar.planner.planner import PlanningTask, Progress, Watch, captured_for, choices_for
from autopar.planner.request import PlanRequest, PlanResult
from autopar.planner.settle import settle


class Replanner:
    """Plans under what a plan was asked for, with more constraints or none.

    Args:
        asked: a plan whose batch, precision and optimiser hold.
        captured: the model, in the plan's precision.
        time_limit_s: of each search.
    """

    def __init__(
        self,
        asked: Plan,
        source: ModelSource,
        cluster: Cluster,
        captured: Capture,
        memory_limit_bytes: int | None,
        time_limit_s: float | None,
        progress: Progress | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._base = Plan(
            global_batch=asked.global_batch,
            precision=asked.precision,
            optimizer=asked.optimizer,
            compile=asked.compile,
        )
        self._captured, self._progress, self._watch = captured, progress, watch
        self._request = PlanRequest(
            source=source,
            cluster=cluster,
            memory_limit_bytes=memory_limit_bytes,
            top=1,
            time_limit_s=time_limit_s,
            with_baselines=False,
        )
        self._choices: ModelChoices | None = None
        self._store = BlockStore(Readings(cluster))

    def plan(self, pins: Plan, *, top: int = 1, memory_limit_bytes: int | None = None) -> PlanResult:
        """What ``plan`` answers under these constraints.

        Raises:
            InfeasibleError: no plan fits.
            PlanError: the constraints are wrong for the model.
        """
        limit_bytes = memory_limit_bytes or self._request.memory_limit_bytes
        request = replace(
            self._request, constraints=merge(pins, self._base), top=top, memory_limit_bytes=limit_bytes
        )
        settled, _ = settle(request)
        captured = captured_for(request, settled, self._captured)
        choices = self._tables_for(request, settled, captured)
        task = PlanningTask(
            request, settled, choices, captured, *legal_families(choices, settled, request.cluster)
        )
        found = task.solve(request.time_limit_s, self._progress, self._watch)
        if found is None:
            raise InfeasibleError("no plan fits under these constraints", binding="memory")
        return found

    def _tables_for(self, request: PlanRequest, settled: Plan, captured: Capture) -> ModelChoices:
        """Tables under the constraints; one set serves all that fix nothing inside blocks."""
        if settled.tensor or settled.activations or settled.operators or settled.recompute:
            return choices_for(request, settled, captured, self._store)
        if self._choices is None:
            self._choices = choices_for(request, settled, captured, self._store)
        return self._choices
