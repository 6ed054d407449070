"""Profiling in processes of its own, which are ended if they do not come back in time."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autopar import errors
from autopar.errors import AutoparError, DistributedError
from autopar.profile.settings import ProfileResult, ProfileSettings
from autopar.units import format_seconds
from autopar.verify.job import Failure

_POLL_S = 0.1


def run_profile(settings: ProfileSettings, tell: Callable[[str], None] | None = None) -> ProfileResult:
    """Measures this machine.

    Args:
        tell: told what rank 0 is measuring.

    Raises:
        UsageError: a model cannot be loaded.
        CaptureError: a model cannot be captured.
        DistributedError: a process failed, or the time was not enough; says where each rank was.
    """
    with tempfile.TemporaryDirectory(prefix="autopar-profile-") as name:
        folder = Path(name)
        (folder / "job.pickle").write_bytes(pickle.dumps(settings))
        with _job(folder, settings) as process:
            _watch(process, folder, settings, tell or (lambda text: None))
        failures = [pickle.loads(path.read_bytes()) for path in sorted(folder.glob("error-*.pickle"))]
        if failures:
            raise _error(failures, folder)
        found = folder / "result.pickle"
        if not found.is_file():
            raise DistributedError(
                f"the profiling processes ended without a result; {_whereabouts(folder)}; look at what they"
                " wrote above"
            )
        result: ProfileResult = pickle.loads(found.read_bytes())
        return result


@contextmanager
def _job(folder: Path, settings: ProfileSettings) -> Iterator[subprocess.Popen[bytes]]:
    """The process and all that it starts; none of them outlives the block."""
    environment = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        MASTER_ADDR="127.0.0.1",
        TORCH_CPP_LOG_LEVEL="ERROR",
        # Looking for a GPU must not make one unusable for the processes that are forked later.
        PYTORCH_NVML_BASED_CUDA_CHECK="1",
    )
    if settings.kind == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    process = subprocess.Popen(
        [sys.executable, "-m", "autopar.profile.job", str(folder), str(os.getpid())],
        env=environment,
        stdout=2,  # stdout is for results
        start_new_session=True,  # so that all ranks can be ended together
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _watch(
    process: subprocess.Popen[bytes], folder: Path, settings: ProfileSettings, tell: Callable[[str], None]
) -> None:
    deadline_s = time.monotonic() + settings.timeout_s
    told = ""
    while process.poll() is None:
        if time.monotonic() > deadline_s:
            raise DistributedError(
                f"the profile did not finish within {format_seconds(settings.timeout_s)};"
                f" {_whereabouts(folder)}; ask for less (--quick, fewer --processes), or for more time"
                " (--timeout)"
            )
        part = _at(folder, 0 if (folder / "progress-0").exists() else -1).partition(":")[0]
        if part and part != told:
            told = part
            tell(f"profiling: {part}")
        time.sleep(_POLL_S)


def _whereabouts(folder: Path) -> str:
    ranks = sorted(int(path.name.partition("-")[2]) for path in folder.glob("progress-*"))
    places = [f"rank {rank} was at '{_at(folder, rank)}'" for rank in ranks if rank >= 0]
    return ", ".join(places) or f"it was {_at(folder, -1) or 'starting'}"


def _at(folder: Path, rank: int) -> str:
    path = folder / f"progress-{rank}"
    return path.read_text() if path.is_file() else ""


def _error(failures: list[Failure], folder: Path) -> AutoparError:
    """The error of the rank that failed first of all, not of those that waited for it."""
    cause = next((x for x in failures if x.is_cause), failures[0])
    kind = getattr(errors, cause.kind, None)
    if cause.is_users and isinstance(kind, type) and issubclass(kind, AutoparError):
        return kind(cause.message)
    where = "while preparing" if cause.rank < 0 else f"on rank {cause.rank}"
    message = cause.message.splitlines()[0][:200] if cause.message else ""
    if not cause.is_cause:
        return DistributedError(f"the profile stopped {where}: {message}; {_whereabouts(folder)}")
    return AutoparError(f"the profile failed {where}: {cause.kind}: {message}\n{cause.trace}")
