"""After the first step: what was predicted, what was measured."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from autopar.plan.decisions import Plan
from autopar.runtime.mesh import RankMesh
from autopar.units import format_bytes, format_seconds


def report_first_step(plan: Plan, mesh: RankMesh, step_s: float) -> None:
    """Writes one line to stderr on rank 0."""
    if mesh.rank != 0:
        return
    predicted = _predicted(plan)
    measured = {
        "step_time": f"first step {format_seconds(step_s)} with start-up",
        "peak_memory": f"peak memory of rank 0 {format_bytes(_peak_bytes(mesh.device))}",
    }
    texts = [
        text + (f" (predicted {predicted[key]})" if key in predicted else "")
        for key, text in measured.items()
    ]
    sys.stderr.write(f"autopar: {', '.join(texts)}\n")
    sys.stderr.flush()


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _predicted(plan: Plan) -> dict[str, Any]:
    # The plan type leaves this section out, since nothing may depend on it; for a line of text it is read
    # here.
    if not plan.path or not Path(plan.path).is_file():
        return {}
    document = yaml.safe_load(Path(plan.path).read_text())
    found = document.get("predicted") if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}
