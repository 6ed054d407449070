"""Do all ranks bring the same plan, model and arguments? Asked over the store, before any collective."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from autopar.errors import DistributedError
from autopar.runtime.meeting import Meeting
from autopar.units import format_seconds


def agree(
    meeting: Meeting, name: str, values: Mapping[str, str], timeout_s: float, longest_stay_s: float
) -> None:
    """Checks that every rank brings the same values; no collective is used.

    Args:
        name: key of this agreement.
        values: what is compared, in words -> its value on this rank.
        longest_stay_s: how long rank 0 stays for the others to read a difference.

    Raises:
        DistributedError: ranks differ, or have not come within the time-out.
    """
    try:
        found = _exchange(meeting, name, json.dumps(dict(values)), timeout_s, longest_stay_s)
    except (RuntimeError, OSError) as error:
        raise DistributedError(
            f"rank {meeting.rank} came to compare its {' and '.join(values)} with the other ranks, and the"
            f" store at {meeting.place} has gone ({first_line(error)}): rank 0 has ended, or has waited"
            f" longer than {format_seconds(timeout_s)} (timeout_s); look at its output"
        ) from error
    missing = [rank for rank, text in enumerate(found) if text is None]
    if missing:
        raise DistributedError(
            f"{_ranks(missing)} did not start within {format_seconds(timeout_s)}; look at their output"
        )
    brought: list[dict[str, str]] = [json.loads(text or "{}") for text in found]
    differing = [what for what in values if len({one.get(what) for one in brought}) > 1]
    if differing:
        counts: dict[tuple[str | None, ...], list[int]] = {}
        for rank, one in enumerate(brought):
            counts.setdefault(tuple(one.get(what) for what in differing), []).append(rank)
        majority = max(counts.values(), key=lambda ranks: (len(ranks), -ranks[0]))
        others = [rank for ranks in counts.values() if ranks is not majority for rank in ranks]
        raise DistributedError(
            f"{' and '.join(differing)} of {_ranks(sorted(others))} differ from those of"
            f" {_ranks(majority)}; give every rank the same plan file, model code and arguments"
        )


def come_together(meeting: Meeting, name: str, timeout_s: float) -> None:
    """Waits until all ranks have come here; no collective is used.

    Gloo ends the process where ranks give a collective different sizes, without a word about who called what.

    Args:
        name: of this occasion, used once.

    Raises:
        DistError: ranks are missing.
    """
    keys = [f"{name}/{rank}" for rank in range(meeting.size)]
    meeting.store.set(keys[meeting.rank], "")
    if None in _wait_for(meeting.store, keys, timeout_s):
        raise dist.DistError("timed out waiting for the other ranks to make the same call")


def stay_until_read(meeting: Meeting, what: str, deaf: Collection[int], longest_s: float) -> None:
    """Where the store lives in rank 0, it stays until the others have read why they stop.

    Args:
        deaf: ranks that will not read it.
    """
    with suppress(RuntimeError, OSError):
        meeting.store.set(f"{what}/read/{meeting.rank}", "")
        if meeting.rank == 0:
            alive = [rank for rank in range(meeting.size) if rank not in deaf]
            _wait_for(meeting.store, [f"{what}/read/{rank}" for rank in alive], longest_s)


def first_line(error: BaseException) -> str:
    """Of what an error says; its kind where it says nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _exchange(
    meeting: Meeting, name: str, text: str, timeout_s: float, longest_stay_s: float
) -> list[str | None]:
    """What each rank brings, None where it has not come in time."""
    meeting.store.set(f"{name}/{meeting.rank}", text)
    found = _wait_for(meeting.store, [f"{name}/{rank}" for rank in range(meeting.size)], timeout_s)
    if len(set(found)) > 1:
        absent = [rank for rank, text in enumerate(found) if text is None]
        stay_until_read(meeting, name, absent, longest_stay_s)
    return found


def _wait_for(store: Store, keys: list[str], timeout_s: float) -> list[str | None]:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s and not store.check(keys):
        time.sleep(0.02)
    if store.check(keys):
        return [value.decode() for value in store.multi_get(keys)]
    return [store.get(key).decode() if store.check([key]) else None for key in keys]


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (", …" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
