"""What the site changes in pages that are read as plain files too: notes of fences, links out of docs/."""

from __future__ import annotations

import re
from typing import Any

_NOTES = re.compile(r"^(```\w+) [^\n]+$", re.MULTILINE)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:examples|plans|cost_models|benchmarks|README)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leaves a fence its language alone, and of a link to a file of the repository its text."""
    return _OUTSIDE.sub(r"\1", _NOTES.sub(r"\1", markdown))
