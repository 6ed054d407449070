"""Parameters pinned to placements that no operator takes together: what can be run can be planned."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from autopar.capture.target import ModelSource, source_from_functions
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.read import read_plan
from autopar.plan.write import write_plan
from autopar.planner.check import check_plan
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest

# A transposed convolution has its output channels in dim 1 of the weight and in dim 0 of the bias.
_AT_ODDS = "mesh: {tensor: 4, data: 1, pipeline: 1}\ntensor: {up.weight: shard(0), up.bias: shard(0)}\n"


class _Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.up(torch.relu(self.down(image)))
        return result


def _source() -> ModelSource:
    return source_from_functions(
        _Up, lambda n: {"image": torch.randn(n, 3, 8, 8)}, lambda output, batch: output.square().mean()
    )


def test_parameters_at_odds_are_planned_as_they_are_run(tmp_path: Path) -> None:
    file = tmp_path / "constraints.yaml"
    file.write_text("version: 1\n" + _AT_ODDS)
    source, cluster = _source(), cluster_of(load_device("a100-sxm-80gb"), 4)
    constraints = read_plan(file)
    result = make_plan(PlanRequest(source, cluster, global_batch=8, constraints=constraints))
    written = tmp_path / "plan.yaml"
    written.write_text(write_plan(result.plan))
    checked = check_plan(read_plan(written), source, cluster)
    assert checked.prediction.step_time_s == result.prediction.step_time_s
