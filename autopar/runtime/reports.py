"""What ranks post of themselves, and who of them is to blame for a wait that failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank last posted.

    Attributes:
        host: name of its machine.
        pulse: counts up while the process lives.
        moves: counts actions begun.
        action: what it does or did last, for people.
        is_waiting: it takes part in something distributed; else it does what is its own business.
        error: first line of the error that stopped it, or "".
        is_cause: the error is its own, not a wait for somebody else.
        end: how it took its leave, for people, or "".
    """

    rank: int
    host: str = ""
    pulse: int = -1
    moves: int = -1
    action: str = "starting"
    is_waiting: bool = False
    error: str = ""
    is_cause: bool = False
    end: str = ""


def post(store: Store, report: Report) -> None:
    """Leaves a report for the other ranks."""
    fields = asdict(report)
    del fields["rank"]
    store.set(_key(report.rank), json.dumps(fields))


def read(store: Store, rank: int) -> Report:
    """What a rank last posted; an empty report where it has not yet."""
    if not store.check([_key(rank)]):
        return Report(rank)
    fields: dict[str, Any] = json.loads(store.get(_key(rank)))
    return Report(rank, **fields)


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"


class View:
    """The others as one rank sees them after some time.

    Args:
        rank: that looks.
        pulses: of every rank, at the beginning.
        now: reports of every rank.

    Attributes:
        gone: ranks whose heart has not beaten since, and who have not said why.
        alive: the others who have not said why.
    """

    def __init__(self, rank: int, pulses: Sequence[int], now: Sequence[Report]) -> None:
        self._rank = rank
        self._now = now
        silent = [report for report in now if not report.error and report.rank != rank]
        self.gone = [report for report in silent if report.pulse <= pulses[report.rank]]
        self.alive = [report for report in silent if report not in self.gone]

    @property
    def deaf(self) -> frozenset[int]:
        """Ranks that will not read why the others stop."""
        return frozenset(x.rank for x in (*self.gone, *(x for x in self._still if not x.is_waiting)))

    @property
    def _still(self) -> list[Report]:
        # Who waits, too, has yet to find out; who does not is the one that is waited for.
        return [report for report in self.alive if not report.is_waiting] or self.alive

    @property
    def _calls(self) -> dict[str, list[int]]:
        """Who takes part in which call, as far as is known."""
        found: dict[str, list[int]] = {}
        for report in self._now:
            found.setdefault(report.action.partition(", ")[0], []).append(report.rank)
        return found

    def blame(self) -> str:
        """Names the ranks to blame, and what they did last."""
        names = _names(self._now)
        causes = [report for report in self._now if report.is_cause]
        if causes:
            return "; ".join(f"{names[x.rank]} failed in {x.action}: {x.error}" for x in causes)
        if self.gone:
            return "; ".join(
                f"{names[x.rank]} {x.end or 'is gone (no heartbeat)'}, its last action was {x.action}"
                for x in self.gone
            )
        if not any(not report.is_waiting for report in self.alive) and len(self._calls) > 1:
            places = (f"{_ranges(ranks)} in {call}" for call, ranks in self._calls.items())
            return f"ranks differ: {'; '.join(places)}; every rank makes the same calls in the same order"
        if self._still:
            return "; ".join(f"{names[x.rank]} is alive but stands still in {x.action}" for x in self._still)
        last = min((report for report in self._now if report.rank != self._rank), key=lambda x: x.moves)
        return f"every rank waits; the one that came least far is {names[last.rank]}, in {last.action}"


def _names(reports: Sequence[Report]) -> list[str]:
    """How to call each rank: with its machine where there are several."""
    several = len({report.host for report in reports if report.host}) > 1
    return [f"rank {x.rank} (on {x.host})" if several and x.host else f"rank {x.rank}" for x in reports]


def _ranges(ranks: Sequence[int]) -> str:
    """Ascending numbers, neighbours drawn together: "0, 2-5"."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
