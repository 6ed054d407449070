"""Every command in the README is run as it stands, in the order in which a reader meets it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(?P<language>\w+)(?P<notes>[^\n]*)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
MAKE_TARGETS = {"make demo", "make test", "make check"}


def shell_commands() -> list[tuple[str, str]]:
    """(command, notes of its fence) of every ```sh block, continuation lines joined, comments dropped."""
    commands = []
    for block in BLOCK.finditer((ROOT / "README.md").read_text()):
        if block["language"] != "sh":
            continue
        for line in block["body"].replace("\\\n", " ").splitlines():
            command = line.split(" #")[0].strip()
            if command and not command.startswith("#"):
                commands.append((command, block["notes"].strip()))
    return commands


def test_readme_names_the_two_commands() -> None:
    assert (
        MAKE_TARGETS
        >= {c for c, _ in shell_commands() if c.startswith("make ")}
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
    for command, notes in shell_commands():
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
