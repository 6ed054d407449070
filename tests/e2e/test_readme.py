"""Every command in the README is run as it stands, in the order in which a reader meets it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.documents import ROOT, shell_commands

MAKE_TARGETS = {"make demo", "make test", "make check"}


def test_readme_names_the_two_commands() -> None:
    assert (
        MAKE_TARGETS
        >= {c for c, _ in shell_commands("README.md") if c.startswith("make ")}
        >= {"make demo", "make test"}
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_readme_commands_run(tmp_path: Path) -> None:
    for name in ("examples",):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    ran = 0
    for command, notes in shell_commands("README.md"):
        if command in MAKE_TARGETS or command.startswith(
            ("git ", "cd ", "pip ", "python3 -m venv", "source ", ". ")
        ):
            continue
        expected = int(notes.removeprefix("exit ")) if notes.startswith("exit ") else 0
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == expected, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        ran += 1
    assert ran >= 8
