"""Capturing in a child of the rank, so that what tracing imports and leaves behind ends with the child.

torch.export brings some 400 modules and 35 MiB that training never asks for; on a CPU every rank would keep
them. The child is forked, so that it knows the user's functions without being told; that is done only where
the process has a single thread, of which no lock can be held, and computes on the CPU. In any other case, and
where the child fails for whatever reason, the rank captures by itself, with the same result.
"""

from __future__ import annotations

import os
import signal
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import NoReturn

import torch

from autopar.capture.model_graph import ModelGraph
from autopar.capture.portable import read_model, write_model
from autopar.capture.target import ModelSource
from autopar.runtime.lifeline import end_with_parent
from autopar.runtime.randomness import untouched_randomness

_THREADS = Path("/proc/self/task")


def capture_apart(
    source: ModelSource, dtype: torch.dtype, micro_batch: int, device: torch.device
) -> ModelGraph:
    """The model for ``micro_batch`` samples; the random numbers of this process stay as they are.

    Args:
        device: on which this rank computes.

    Raises:
        CaptureError: the model cannot be traced; names the user's line.
        UsageError: the user's functions do not fit together.
    """
    if _may_fork(device):
        data = _written_by_child(source, dtype, micro_batch)
        if data:
            with suppress(Exception):  # e.g. an operator that only the child has registered
                return read_model(data)
    with untouched_randomness():
        return _captured(source, dtype, micro_batch)


def _captured(source: ModelSource, dtype: torch.dtype, micro_batch: int) -> ModelGraph:
    from autopar.capture.capture import capture  # what captures is the child's alone, too

    return capture(source, dtype).at(micro_batch)


def _may_fork(device: torch.device) -> bool:
    """Whether a child can do all that this process can: locks and devices do not survive a fork."""
    is_alone = _THREADS.is_dir() and len(list(_THREADS.iterdir())) == 1
    return is_alone and device.type == "cpu" and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def _written_by_child(source: ModelSource, dtype: torch.dtype, micro_batch: int) -> bytes:
    """The captured model as the child writes it; empty where it fails."""
    reading, writing = os.pipe()
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:  # no memory for as much again, or no more processes allowed
        os.close(reading)
        os.close(writing)
        return b""
    if child == 0:
        os.close(reading)
        end_with_parent(parent)
        _capture_and_end(source, dtype, micro_batch, writing)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            return pipe.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        with suppress(ChildProcessError):  # where somebody else reaps the children of this process
            os.waitpid(child, 0)


def _capture_and_end(source: ModelSource, dtype: torch.dtype, micro_batch: int, pipe: int) -> NoReturn:
    """The child's whole life: nothing that the parent set up for its own end may run in it."""
    try:
        # The user's functions run in the parent as well: what they say is said there.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            data = write_model(_captured(source, dtype, micro_batch))
        with open(pipe, "wb") as file:
            file.write(data)
    finally:
        os._exit(0)
