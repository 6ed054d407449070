"""The regret benchmark sweeps what it should, and measures real steps of real plans."""

import json
from pathlib import Path

import pytest
import regret

from tests.profile.made_up import made_up_profile


def test_micro_batches_divide_a_data_ranks_share() -> None:
    assert regret.micro_batches(16, 1, 16) == [16, 8, 4, 2, 1]
    assert regret.micro_batches(16, 4, 16) == [4, 2, 1]
    assert regret.micro_batches(12, 2, 4) == [6, 3]


@pytest.mark.slow
def test_plans_of_two_processes_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = tmp_path / "here.yaml"
    device.write_text(regret.cost_model_text(made_up_profile(num_processes=2), "here"))
    flags = ["--models", "recommender", "--processes", "2", "--micro-batches", "2", "--repetitions", "1"]
    found = tmp_path / "found.json"
    assert regret.main([*flags, "--seconds", "1", "--device", str(device), "--json", str(found)]) == 0
    out = capsys.readouterr().out
    assert "<- chosen" in out and "Spearman" in out
    assert "times as fast as in the profile" in out
    plans = json.loads(found.read_text())["models"]["recommender"]["plans"]
    meshes = {tuple(plan["key"][:3]) for plan in plans}
    assert meshes == {(1, 1, 2), (1, 2, 1), (2, 1, 1)}
    assert all(plan["median_s"] > 0 and plan["predicted_s"] > 0 for plan in plans)
