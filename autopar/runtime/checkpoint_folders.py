"""Folders of checkpoints: which one is complete, which is the last, how a new one takes its place at once.

A checkpoint is written into a hidden folder beside its own (``.NAME.partial``). A list of its files with
their sizes comes last, then the folder is renamed. Whatever stops a run, what lies under a checkpoint's
name is whole; the one that it replaces is deleted after that (``.NAME.replaced`` meanwhile).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from autopar.errors import UsageError

MANIFEST = "autopar.json"
"""Name of the list of files; ``{"step": ..., "files": {name: bytes}}``."""

_INDEX = ".metadata"  # of torch.distributed.checkpoint


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The complete checkpoint of the most steps among those directly inside ``folder``, if there is one.

    Whatever is half-written, cut short or no checkpoint is passed over. Nothing is changed, so that every
    rank may ask.
    """
    root = Path(folder)
    if not root.is_dir():
        return None
    names = {_own_name(entry.name) for entry in root.iterdir() if entry.is_dir()}
    found = [(root / name, find_checkpoint(root / name)) for name in sorted(names)]
    complete = [(_step(place), path) for path, place in found if place is not None and is_complete(place)]
    return max(complete, key=lambda entry: (entry[0], entry[1].name))[1] if complete else None


def find_checkpoint(path: str | Path) -> Path | None:
    """Where the checkpoint lies that was saved as ``path``; None if there is none.

    That is ``path`` itself, but for a run that ended in the moment of the renaming.
    """
    path = Path(path)
    if _is_cut_short(path):
        return None
    if (path / _INDEX).is_file():
        return path
    return next((x for x in (partial_folder(path), _replaced_folder(path)) if is_complete(x)), None)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a checkpoint with every file that it was saved with, in full length."""
    files = _manifest(folder).get("files")
    return isinstance(files, dict) and all(_size(folder / name) == size for name, size in files.items())


def explain_missing(path: str | Path) -> str:
    """Why there is no checkpoint at ``path``, and what to do."""
    path = Path(path)
    if _is_cut_short(path):
        return f"the checkpoint '{path}' is cut short: files are missing or too short; load an earlier one"
    inside = latest_checkpoint(path)
    if inside is not None:
        return f"there is no checkpoint in '{path}' itself; the last one inside is '{inside}'"
    return f"there is no checkpoint in '{path}'; give the folder that save() wrote"


def partial_folder(path: Path) -> Path:
    """Where the checkpoint ``path`` is written."""
    return path.parent / f".{path.name}.partial"


def begin(path: Path) -> Path:
    """Makes the folder to write a checkpoint into; for one rank alone.

    Raises:
        UsageError: ``path`` holds something that is no checkpoint.
        OSError: the folder cannot be made.
    """
    foreign = _foreign_files(path)
    if foreign:
        raise UsageError(
            f"'{path}' holds '{foreign[0]}', which is no part of a checkpoint; save to a folder of its own,"
            f" such as '{path / 'checkpoint'}'"
        )
    partial = partial_folder(path)
    if not path.exists():  # the last run ended while it renamed
        kept = find_checkpoint(path)
        if kept is not None:
            kept.rename(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def commit(path: Path, step: int) -> None:
    """Gives what was written for ``path`` its name; for one rank alone, after all have written.

    Raises:
        OSError: the disk is full, or no longer there.
    """
    partial, replaced = partial_folder(path), _replaced_folder(path)
    files = {entry.name: entry.stat().st_size for entry in sorted(partial.iterdir())}
    manifest = partial / f".{MANIFEST}"
    with manifest.open("w", encoding="utf-8") as stream:
        json.dump({"step": step, "files": files}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    manifest.rename(partial / MANIFEST)
    _sync(partial)
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    _sync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def abandon(path: Path) -> None:
    """Deletes what was written for ``path`` and will not be completed."""
    shutil.rmtree(partial_folder(path), ignore_errors=True)


def _own_name(name: str) -> str:
    for suffix in (".partial", ".replaced"):
        if name.startswith(".") and name.endswith(suffix):
            return name[1 : -len(suffix)]
    return name


def _replaced_folder(path: Path) -> Path:
    return path.parent / f".{path.name}.replaced"


def _is_cut_short(path: Path) -> bool:
    return (path / MANIFEST).exists() and not is_complete(path)


def _manifest(folder: Path) -> dict[str, object]:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _step(folder: Path) -> int:
    step = _manifest(folder).get("step")
    return step if isinstance(step, int) else -1


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _foreign_files(path: Path) -> list[str]:
    if not path.is_dir():
        return [path.name] if path.exists() else []
    own = (_INDEX, MANIFEST)
    return sorted(x.name for x in path.iterdir() if x.name not in own and x.suffix != ".distcp")


def _sync(folder: Path) -> None:
    """Has the names in a folder written to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
