"""Folders of checkpoints: at every moment a run may end, what is found is complete."""

import os
from pathlib import Path

import pytest

import autopar
from autopar.errors import UsageError
from autopar.runtime import checkpoint_folders
from autopar.runtime.checkpoint_folders import abandon, begin, commit, find_checkpoint, is_complete


def write(path, step, text="data"):
    partial = begin(path)
    (partial / "__0_0.distcp").write_text(text)
    (partial / ".metadata").write_text("index")
    commit(path, step)


def test_the_last_is_the_one_of_the_most_steps(tmp_path):
    for step in (9, 10, 2):
        write(tmp_path / f"step-{step}", step)
    (tmp_path / "logs").mkdir()
    assert autopar.latest_checkpoint(tmp_path) == tmp_path / "step-10"
    assert autopar.latest_checkpoint(tmp_path / "logs") is None
    assert autopar.latest_checkpoint(tmp_path / "nowhere") is None


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    write(tmp_path / "a", 1)
    (begin(tmp_path / "b") / "__0_0.distcp").write_text("half")
    assert autopar.latest_checkpoint(tmp_path) == tmp_path / "a"
    assert find_checkpoint(tmp_path / "b") is None
    abandon(tmp_path / "b")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_checkpoint_cut_short_is_passed_over(tmp_path, damage):
    write(tmp_path / "a", 1)
    write(tmp_path / "b", 2)
    file = tmp_path / "b" / "__0_0.distcp"
    file.write_text("da") if damage == "shorter" else file.unlink()
    assert autopar.latest_checkpoint(tmp_path) == tmp_path / "a"
    assert find_checkpoint(tmp_path / "b") is None
    assert "'; load an earlier one" not in checkpoint_folders.explain_missing(tmp_path)
    assert "is cut short" in checkpoint_folders.explain_missing(tmp_path / "b")


class RunEndedError(Exception):
    """The run ends here."""


@pytest.mark.parametrize("last", range(6))
def test_wherever_a_run_ends_a_complete_checkpoint_is_there(tmp_path, monkeypatch, last):
    path = tmp_path / "run" / "checkpoint"
    path.parent.mkdir()
    write(path, 1, "old")
    moves = 0

    def counted(function):
        def call(*args, **keywords):
            nonlocal moves
            moves += 1
            if moves > last:
                raise RunEndedError
            return function(*args, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(os, "fsync", counted(os.fsync))
        with pytest.raises(RunEndedError):
            write(path, 2, "new")
            raise RunEndedError
    found = find_checkpoint(path)
    assert found is not None and is_complete(found)
    text = (found / "__0_0.distcp").read_text()
    assert text == ("new" if last >= 4 else "old")
    assert autopar.latest_checkpoint(tmp_path / "run") == path
    begin(path)  # of the next attempt, which keeps what there is
    found = find_checkpoint(path)
    assert found is not None and (found / "__0_0.distcp").read_text() == text
    write(path, 3, "newer")
    assert sorted(x.name for x in path.parent.iterdir()) == ["checkpoint"]
    assert (path / "__0_0.distcp").read_text() == "newer"


def test_what_is_no_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        UsageError, match=r"holds 'notes.txt', which is no part of a checkpoint; save to a fo"
    ):
        begin(tmp_path)
    with pytest.raises(UsageError, match=r"holds 'notes.txt'"):
        begin(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_becomes_a_checkpoint(tmp_path):
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", 5)
    assert autopar.latest_checkpoint(tmp_path) == tmp_path / "a"


def test_a_folder_of_checkpoints_names_its_last(tmp_path):
    write(tmp_path / "a", 1)
    assert checkpoint_folders.explain_missing(tmp_path).endswith(f"the last one inside is '{tmp_path / 'a'}'")
