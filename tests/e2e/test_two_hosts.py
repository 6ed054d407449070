"""torchrun on two hosts: the command of docs/launch.md trains as one run does, and goes on after losing a
host; one whose torchrun has gone, or a network that is cut, ends the other with a message."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import faults
from tests.e2e.documents import ROOT, blocks_of
from tests.e2e.hosts import NAMES, Hosts, kill_all, two_hosts, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with two_hosts(tmp_path) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command is run: shared by the hosts."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def documented_command() -> str:
    (block,) = [x for x in blocks_of("docs/launch.md", "sh") if x.notes == "several nodes"]
    return block.body.strip()


def start_on(host: str, hosts: Hosts, folder: Path, command: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return hosts.start(host, command, folder / f"{host}.log", folder, HEAD="node-a", PATH=path)


def start_endless(hosts: Hosts, folder: Path) -> dict[str, subprocess.Popen[str]]:
    """The same command for a run that something is done to, with one rank on each host."""
    faults.make_plan(folder / "plan.yaml", 2)
    command = documented_command().replace("--steps 20", "--steps 100000")
    command = command.replace("--max-restarts 3", "--max-restarts 0")
    command = command.replace("--nproc-per-node 2", "--nproc-per-node 1")
    runs = {host: start_on(host, hosts, folder, f"{command} --timeout-s 15") for host in NAMES}
    wait_for_steps(folder, 3, runs["node-a"])
    return runs


def wait_for_steps(folder: Path, num_steps: int, run: subprocess.Popen[str]) -> None:
    faults.wait_until(lambda: faults.steps_done(folder / "run") >= num_steps, run)
    assert run.poll() is None, (folder / "node-a.log").read_text()[-3000:]


def test_training_goes_on_when_a_lost_node_comes_back(hosts: Hosts, folder: Path) -> None:
    plan = faults.make_plan(folder / "plan.yaml", 4)
    command = documented_command()
    runs = {host: start_on(host, hosts, folder, command) for host in NAMES}
    wait_for_steps(folder, 7, runs["node-a"])
    kill_all(runs["node-b"])
    runs["node-b"] = start_on("node-b", hosts, folder, command)
    for host, run in runs.items():
        assert run.wait(timeout=300) == 0, (folder / f"{host}.log").read_text()[-3000:]
    alone = folder / "alone"
    faults.train_undisturbed(plan, alone, 4, 20)
    assert faults.losses_of(folder / "run") == faults.losses_of(alone)
    assert len(faults.losses_of(alone)) == 20


def test_a_lost_torchrun_ends_its_ranks_and_the_other_host(hosts: Hosts, folder: Path) -> None:
    runs = start_endless(hosts, folder)
    ranks = faults.workers_of(runs["node-b"].pid)
    os.kill(runs["node-b"].pid, signal.SIGKILL)
    assert runs["node-a"].wait(timeout=90) != 0
    logs = {host: (folder / f"{host}.log").read_text() for host in NAMES}
    lost = max(ranks)
    assert f"autopar: rank {lost} stops in" in logs["node-b"]
    assert "torchrun, which started it, is gone" in logs["node-b"]
    assert (
        "(on node-b) failed in" in logs["node-a"] and "torchrun, which started it, is gone" in logs["node-a"]
    )
    deadline_s = time.monotonic() + 10
    while any(Path(f"/proc/{number}").exists() for number in ranks.values()):
        assert time.monotonic() < deadline_s, "ranks of the lost torchrun are still there"
        time.sleep(0.1)


def test_a_network_that_is_cut_ends_both_hosts(hosts: Hosts, folder: Path) -> None:
    runs = start_endless(hosts, folder)
    hosts.cut()
    began_s = time.monotonic()
    wanted = {
        "node-a": "(on node-b) is gone (no heartbeat)",
        "node-b": "does not answer: its host or the network is down",
    }
    for host, message in wanted.items():
        log = folder / f"{host}.log"
        faults.wait_until(lambda log=log, message=message: message in log.read_text(), runs[host])
        assert message in log.read_text(), log.read_text()[-3000:]
    assert time.monotonic() - began_s < 90
    assert json.loads((folder / "run" / "losses.jsonl").read_text().splitlines()[0])["step"] == 0
