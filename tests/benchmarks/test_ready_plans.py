"""The plans that come with autopar: whole, as their commands asked, and what planning finds today.

That they satisfy their JSON Schema is tests/plan/test_schema.py's.
"""

from pathlib import Path

import pytest
import yaml
from ready_plans import README, READY, Ready, make, readme_with, table

from autopar.lower.resolve import missing_decisions
from autopar.plan.read import read_plan

EACH = pytest.mark.parametrize("ready", READY, ids=lambda ready: ready.file)


def test_the_folder_holds_these_plans_and_no_other() -> None:
    assert {path.name for path in README.parent.glob("*.yaml")} == {ready.path.name for ready in READY}


def test_the_readme_is_that_of_the_plans() -> None:
    text = README.read_text(encoding="utf-8")
    assert readme_with(text, table()) == text
    changed = text.replace(READY[0].model, "another model")
    assert changed != text
    assert readme_with(changed, table()) == text


@EACH
def test_every_plan_is_complete_and_what_its_command_asked_for(ready: Ready) -> None:
    plan = read_plan(ready.path)
    assert missing_decisions(plan) == ()
    assert plan.model is not None and plan.cluster is not None
    assert plan.model.source == ready.target
    assert dict(plan.model.args) == dict(ready.args)
    assert plan.cluster.device == ready.device
    assert plan.cluster.num_devices == ready.num_devices
    assert plan.cluster.devices_per_node == ready.devices_per_node
    assert plan.global_batch == ready.global_batch


@pytest.mark.slow
@pytest.mark.timeout(900)
@EACH
def test_planning_again_finds_the_same_speed(ready: Ready, tmp_path: Path) -> None:
    again = tmp_path / ready.path.name
    make(ready, again)
    new, old = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (again, ready.path))
    assert new["model"]["fingerprint"] == old["model"]["fingerprint"]
    new_speed, old_speed = (plan["predicted"]["samples_per_s"] for plan in (new, old))
    assert new_speed == pytest.approx(old_speed, rel=0.01)
