"""docs/: reference as the code has it, files that parse, links that lead somewhere, commands that run.

docs/launch.md and docs/failures.md have tests of their own (test_launch_documents.py).
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autopar.cli.main import build_parser
from autopar.hardware.read_cluster import load_cluster
from autopar.plan.decisions import Plan
from autopar.plan.read import parse_plan
from docs import site_hooks, write_reference
from tests.e2e.documents import ROOT, Block, blocks_of, commands_of, shell_commands

WRITTEN = tuple(f"reference/{name}" for name in write_reference.pages())
OWN_TESTS = ("launch.md", "failures.md")
PAGES = tuple(str(path.relative_to(ROOT / "docs")) for path in sorted((ROOT / "docs").rglob("*.md")))
BY_HAND = tuple(page for page in PAGES if page not in (*WRITTEN, *OWN_TESTS))
_LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")
_SETTLED = ("python3 ", ". ", "pip ")
_AS_IN = "as in "  # another document, whose test runs the same command


def blocks(page: str, *languages: str) -> list[Block]:
    return blocks_of(f"docs/{page}", *languages)


def pages_of(entry: Any) -> Iterator[str]:
    """The files that the navigation of the site names."""
    if isinstance(entry, str):
        yield entry
    for below in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from pages_of(below)


def test_the_reference_is_what_the_code_says() -> None:
    found = {path.name: path.read_text() for path in write_reference.FOLDER.glob("*.md")}
    assert found == write_reference.pages(), "run: python docs/write_reference.py"


def test_the_navigation_names_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(pages_of(site["nav"])) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    folder = (ROOT / "docs" / page).parent
    for link in _LINK.findall((ROOT / "docs" / page).read_text()):
        assert "://" in link or (folder / link).exists(), f"{page}: {link}"


def test_what_is_written_of_files_parses(tmp_path: Path) -> None:
    read = 0
    for page in BY_HAND:
        for block in blocks(page, "yaml"):
            read += 1
            if block.notes == "cluster.yaml":
                path = tmp_path / "cluster.yaml"
                path.write_text(block.body)
                assert load_cluster(path).num_devices == 16
            else:
                assert parse_plan(block.body, page) != Plan()
        for block in blocks(page, "python"):
            compile(block.body, page, "exec")
    assert read >= 2


def test_every_command_of_autopar_is_one() -> None:
    parsed = 0
    for page in BY_HAND:
        for block in blocks(page, "sh"):
            for command in commands_of(block):
                _, _, words = command.rpartition("autopar ") if " autopar " in f" {command}" else ("", "", "")
                if words and not command.startswith(_SETTLED):
                    build_parser().parse_args(shlex.split(words.partition(" >")[0]))
                    parsed += 1
    assert parsed >= 25


def test_what_another_test_runs_is_in_its_document() -> None:
    compared = 0
    for page in BY_HAND:
        for block in blocks(page, "sh"):
            if block.notes.startswith(_AS_IN):
                there = {
                    tuple(shlex.split(text)) for text, _ in shell_commands(block.notes.removeprefix(_AS_IN))
                }
                commands = {tuple(shlex.split(text)) for text in commands_of(block)}
                assert commands <= there, f"{page}: {commands - there}"
                compared += len(commands)
    assert compared >= 8


def test_fences_and_links_of_the_site() -> None:
    text = "```sh exit 3\nls\n```\nsee [a](../examples/a.py), [b](../../plans/README.md) and [c](../c.md)"
    assert site_hooks.on_page_markdown(text) == "```sh\nls\n```\nsee a, b and [c](../c.md)"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [page for page in BY_HAND if page != "how-to/resume-on-fewer-gpus.md" and blocks(page, "sh")]
)
def test_commands_run(page: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for block in blocks(page, "sh", "python", "yaml"):
        if block.language != "sh":
            if block.notes:  # the name of the file that the reader puts it into
                (tmp_path / block.notes).write_text(block.body)
            continue
        if block.notes == "elsewhere" or block.notes.startswith(_AS_IN):
            continue
        expected = int(block.notes.removeprefix("exit ") or 0)
        for command in commands_of(block):
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == expected, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
