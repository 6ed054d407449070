"""Files that a command line names: found before any work starts, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from autopar.errors import UsageError, closest_match
from autopar.plan.schema import schema_file, schema_text


def existing_file(path: str, what: str) -> Path:
    """The path of a file that can be read.

    Raises:
        UsageError: there is none, it is a folder, or it may not be read.
    """
    found = Path(path)
    if found.is_dir():
        raise UsageError(f"{what}: '{path}' is a folder; name a file")
    if not found.is_file():
        raise UsageError(f"{what}: there is no file '{path}'{_neighbour(found)}")
    if not os.access(found, os.R_OK):
        raise UsageError(f"{what}: '{path}' may not be read; check its permissions")
    return found


def writable_path(path: str, what: str, make_folder: str = "") -> Path:
    """The path of a file that can be written.

    Args:
        make_folder: name of a folder around it that is made where it is not there.

    Raises:
        UsageError: it is a folder, or the folder around it does not exist or may not be written.
    """
    target = Path(path)
    if target.parent.name == make_folder != "" and target.parent.parent.is_dir():
        target.parent.mkdir(exist_ok=True)
    if target.is_dir():
        raise UsageError(f"{what}: '{path}' is a folder; name a file in it")
    if not target.parent.is_dir():
        raise UsageError(f"{what}: there is no folder '{target.parent}'; make it first")
    if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise UsageError(f"{what}: '{path}' may not be written; check its permissions")
    return target


def output_path(path: str | None) -> Path | None:
    """Where ``-o`` sends a result: a file that can be written; None: to stdout, which ``-`` says too.

    Raises:
        UsageError: see ``writable_path``.
    """
    return None if path in (None, "-") else writable_path(path, "-o")


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one step, so that a reader never sees half of it.

    Raises:
        UsageError: the disk is full, say.
    """
    try:
        _write(path, text)
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise UsageError(f"'{path}' cannot be written: {problem.strerror}; name another file") from problem


def _write(path: Path, text: str) -> None:
    if path.exists() and not path.is_file():  # a pipe or device such as /dev/stdout
        path.write_text(text, encoding="utf-8")
        return
    target = path.resolve()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~mask)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_for_editors(path: Path, text: str, kind: str) -> None:
    """Writes a file, and the schema that its first line names into the hidden folder beside it."""
    write_whole(path, text)
    if not path.is_file():
        return  # a pipe or device
    schema, wanted = path.resolve().parent / schema_file(kind), schema_text(kind)
    try:
        if not schema.is_file() or schema.read_text(encoding="utf-8") != wanted:
            schema.parent.mkdir(exist_ok=True)
            _write(schema, wanted)
    except OSError:
        return  # the file is what was asked for; its editor goes without


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return "; check the path"
    return (
        closest_match(path.name, sorted(entry.name for entry in path.parent.iterdir() if entry.is_file()))
        or "; check the path"
    )
