"""Capturing in a child of the rank, so that what tracing imports and leaves behind ends with the child.

torch.export brings some 400 modules and 35 MiB that training never asks for; on a CPU every rank would keep
them. The child is forked, so that it knows the user's functions without being told; that is done only where
the process has a single thread, of which no lock can be held, and computes on the CPU. In any other case, and
where the child fails for whatever reason, the rank captures by itself, with the same result.
"""

from __future__ import annotations

import os
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import torch

from autopar.capture.model_graph import ModelGraph
from autopar.capture.portable import read_model, write_model
from autopar.capture.target import ModelSource
from autopar.forked import ForkedChild, Send, may_fork
from autopar.runtime.randomness import untouched_randomness

_THREADS = Path("/proc/self/task")
# Models of 100 layers take seconds, the largest minutes; whatever takes longer hangs.
_PATIENCE_S = 1800.0


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
    if _can_capture_apart(device):
        data = _written_by_child(source, dtype, micro_batch)
        if data:
            with suppress(Exception):  # e.g. an operator that only the child has registered
                return read_model(data)
    with untouched_randomness():
        return _captured(source, dtype, micro_batch)


def _captured(source: ModelSource, dtype: torch.dtype, micro_batch: int) -> ModelGraph:
    from autopar.capture.capture import capture  # what captures is the child's alone, too

    return capture(source, dtype).at(micro_batch)


def _can_capture_apart(device: torch.device) -> bool:
    """Whether a child can do all that this process can: locks and devices do not survive a fork."""
    is_alone = may_fork() and len(list(_THREADS.iterdir())) == 1
    return is_alone and device.type == "cpu" and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def _written_by_child(source: ModelSource, dtype: torch.dtype, micro_batch: int) -> bytes | None:
    """The captured model as the child writes it; None where it fails."""

    def work(send: Send) -> None:
        # The user's functions run in the parent as well: what they say is said there.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            send(write_model(_captured(source, dtype, micro_batch)))

    try:
        child = ForkedChild(work)
    except OSError:  # no memory for as much again, or no more processes allowed
        return None
    try:
        return child.receive(_PATIENCE_S)
    finally:
        child.end()
