"""Ranks that die, stop or find the disk full under torchrun, and checkpoints cut short: the run goes on from
the last complete checkpoint, and its losses are those of a run that nothing befell, bit for bit."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import autopar
from benchmarks import faults

STEPS = 40

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.make_plan(tmp_path_factory.mktemp("plan") / "plan.yaml", 2)


@pytest.fixture(scope="module")
def alone(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    faults.train_undisturbed(plan, out, 2, STEPS)
    return out


def test_ranks_killed_at_random_moments(plan: Path, alone: Path, tmp_path: Path) -> None:
    kills = faults.train_disturbed(plan, tmp_path, 2, STEPS, num_kills=4, seed=1)
    assert {kill.rank for kill in kills} == {0, 1}
    faults.assert_same(alone, tmp_path, STEPS)


def test_a_stopped_rank_is_named(plan: Path, tmp_path: Path) -> None:
    run = faults.start(tmp_path, [*faults.train_command(plan, 2, 100_000), "--timeout-s", "10"])
    faults.wait_until(lambda: faults.steps_done(tmp_path) > 2, run)
    stopped = faults.workers_of(run.pid)[1]
    os.kill(stopped, signal.SIGSTOP)
    began_s = time.monotonic()
    message = "rank 1 is gone (no heartbeat), its last action was"
    faults.wait_until(lambda: message in (tmp_path / "log").read_text(), run)
    assert time.monotonic() - began_s < 60
    os.kill(stopped, signal.SIGKILL)  # torchrun would wait half a minute for it to end by itself
    assert run.wait() != 0


def test_a_checkpoint_cut_short_is_passed_over(plan: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(alone, out)
    data = max((out / f"step-{STEPS:06}").glob("*.distcp"))
    os.truncate(data, data.stat().st_size // 2)
    (out / "log").unlink()
    faults.train_undisturbed(plan, out, 2, STEPS)
    log = (out / "log").read_text()
    assert f"step {STEPS - 10:>4}  loss" in log and f"step {STEPS - 11:>4}  loss" not in log
    faults.assert_same(alone, out, STEPS)


def test_a_full_disk_leaves_what_was_saved_before(plan: Path, alone: Path, tmp_path: Path) -> None:
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*private, "true"], capture_output=True).returncode:
        pytest.skip("a disk of its own needs unshare and user namespaces, which this machine does not allow")
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    num_bytes = sum(x.stat().st_size for x in (alone / f"step-{STEPS:06}").iterdir())
    train = [*faults.train_command(plan, 2, STEPS), "--out", str(disk)]
    script = f"""
        mount -t tmpfs -o size={num_bytes * 5 // 2} none {disk} || exit 99
        "$@" && exit 98
        cp -r {disk} {kept}
    """
    done = subprocess.run(
        [*private, "sh", "-c", script, "sh", *train], cwd=faults.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"could not write the checkpoint '{disk}/step-0000" in done.stderr
    assert re.search(r"; [\d.]+ \w+ are free there; free space or save elsewhere", done.stderr)
    assert autopar.latest_checkpoint(kept) == kept / "step-000020"
    assert [x.name for x in kept.glob(".*.partial")] == []
    assert faults.losses_of(kept) == faults.losses_of(alone)[: len(faults.losses_of(kept))]
