"""docs/launch.md and docs/failures.md: files parse, commands run, the walkthrough ends with equal losses."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import faults
from tests.e2e.documents import ROOT, blocks_of, shell_commands

LAUNCH, FAILURES = "docs/launch.md", "docs/failures.md"


def recipe(key: str) -> Any:
    """The YAML file of docs/launch.md that has a key."""
    found = [yaml.safe_load(block.body) for block in blocks_of(LAUNCH, "yaml")]
    (one,) = [file for file in found if key in file]
    return one


def run(command: str | list[str], folder: Path, **variables: str) -> str:
    """Runs a documented command beside the examples; returns what it says."""
    if not (folder / "examples").exists():
        (folder / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def shorter(text: str, out: Path) -> str:
    """A command of many steps on a cluster, for a few of them here."""
    found = text.replace("100000", "3").replace("/shared/run", str(out))
    assert found != text
    return found


def test_shell_scripts_and_programs_parse() -> None:
    scripts = [block.body for block in blocks_of(LAUNCH, "bash", "sh")]
    scripts += [recipe("num_nodes")["run"], *(command for command, _ in shell_commands(FAILURES))]
    assert len(scripts) >= 8
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    programs = [block.body for block in blocks_of(LAUNCH, "python")]
    assert programs
    for program in programs:
        compile(program, LAUNCH, "exec")


def test_recipes_hold_what_their_systems_read() -> None:
    job = recipe("kind")
    assert (job["apiVersion"], job["kind"], job["spec"]["nprocPerNode"]) == (
        "kubeflow.org/v1",
        "PyTorchJob",
        "8",
    )
    master, worker = (job["spec"]["pytorchReplicaSpecs"][role] for role in ("Master", "Worker"))
    assert master == worker and master["replicas"] == 1
    (container,) = master["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"  # the name by which the operator finds it
    volumes = {volume["name"] for volume in master["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    task = recipe("num_nodes")
    assert set(task) == {"num_nodes", "resources", "workdir", "file_mounts", "setup", "run"}


def test_every_recipe_saves_and_starts_again() -> None:
    texts = [block.body for block in blocks_of(LAUNCH, "sh", "bash", "yaml", "python")]
    assert len(texts) == 6
    for text in texts:
        assert "train.py" in text and "--save-every" in text and "--out" in text
        assert "--max-restarts" in text or "max_failures" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_of_one_node_run(tmp_path: Path) -> None:
    faults.make_plan(tmp_path / "plan.yaml", 4)
    (command,) = [command for command, notes in shell_commands(LAUNCH) if not notes]
    assert "step   19  loss" in run(command, tmp_path)
    faults.make_plan(tmp_path / "plan.yaml", 2)
    (container,) = recipe("kind")["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
    words = shlex.split(shorter(shlex.join(container["command"]), tmp_path / "job"))
    operator = {
        "NNODES": "1",
        "NPROC_PER_NODE": "2",
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29471",
    }
    assert "step    2  loss" in run(
        words, tmp_path, **{f"PET_{key}": value for key, value in operator.items()}
    )
    sky = {"NODE_IPS": "127.0.0.1", "NUM_NODES": "1", "NUM_GPUS_PER_NODE": "2", "NODE_RANK": "0"}
    script = shorter(recipe("num_nodes")["run"], tmp_path / "sky")
    assert "step    2  loss" in run(
        script, tmp_path, **{f"SKYPILOT_{key}": value for key, value in sky.items()}
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_losing_a_node_as_the_walkthrough_does(tmp_path: Path) -> None:
    commands = [command for command, _ in shell_commands(FAILURES)]
    assert len(commands) == 5
    for command in commands:
        run(command, tmp_path)
    losses = [loss for _, loss in faults.losses_of(tmp_path / "run")]
    undisturbed = json.loads((tmp_path / "undisturbed.json").read_text())
    assert len(losses) == 8
    assert losses == pytest.approx(undisturbed, rel=1e-5)
    assert losses[-1] < losses[0]
