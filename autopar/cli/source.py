"""The model that a plan is for, found again from where the plan says it came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autopar.errors import UsageError
from autopar.plan.decisions import Plan

if TYPE_CHECKING:
    from autopar.capture.target import ModelSource


def load_source_of(plan: Plan) -> ModelSource:
    """Loads the model of a plan; a relative path counts from here, else from the plan file's folder.

    Raises:
        PlanError: the plan names no model, one that is not there, or arguments that it does not take.
        UsageError: the model's file lacks a function.
    """
    if plan.model is None:
        raise plan.error("model", "the plan names no model; add e.g. `model: {source: examples/gpt.py}`")
    from autopar.capture.target import load_target

    target, folder = plan.model.source, Path(plan.path).parent
    if is_path(target) and not _exists(target):
        beside = str(folder / target)
        if not _exists(beside):
            raise plan.error(
                "model.source",
                f"the model '{target}' is neither here ({Path.cwd()}) nor beside the plan; "
                "change to the folder where the plan was made, or correct model.source",
            )
        target = beside
    try:
        return load_target(target, plan.model.args)
    except UsageError as problem:
        if "\n" in str(problem):  # it shows the lines that the model's own file lacks
            raise UsageError(f"{plan.path}: {problem}" if plan.path else str(problem)) from problem
        wrong = next((name for name in plan.model.args if f"argument '{name}'" in str(problem)), None)
        key = "model.source" if wrong is None else f"model.args.{wrong}"
        raise plan.error(key, str(problem)) from problem


def is_path(target: str) -> bool:
    """Whether a target is a file or folder (``gpt.py:small``), not a module (``package.gpt:small``)."""
    path = _path_part(target)
    return path.endswith((".py", ".json")) or "/" in path or ":" not in target


def _exists(target: str) -> bool:
    return Path(_path_part(target)).exists()


def _path_part(target: str) -> str:
    head, colon, factory = target.rpartition(":")
    return head if colon and factory.isidentifier() else target
