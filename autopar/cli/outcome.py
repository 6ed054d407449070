"""What a verb hands back: its result and its exit status. Only ``main`` prints results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a command.

    Attributes:
        result: for stdout.
        exit_status: 0 when all is well.
        remark: a last line for stderr, e.g. why the status is not 0.
    """

    result: str
    exit_status: int = 0
    remark: str = ""


def tell(message: str) -> None:
    """Progress, choices and summaries: to stderr, whatever else happens to stdout."""
    print(message, file=sys.stderr, flush=True)


def document_text(document: Mapping[str, Any]) -> str:
    """A JSON document as it is printed."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
