"""What a trace shows in full."""

from typing import Any

import pytest

from autopar.capture import sharing


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the classes of the layers that the last trace shows in full, though others may equal them."""
    names: list[str] = []
    watch, begin = sharing._Sharing._watch, sharing._Sharing.__init__

    def begun(self: Any, *args: Any) -> None:
        names.clear()
        begin(self, *args)

    def recorded(self: Any, group: Any, described: Any, *rest: Any) -> Any:
        names.append(type(described.root).__name__)
        return watch(self, group, described, *rest)

    monkeypatch.setattr(sharing._Sharing, "__init__", begun)
    monkeypatch.setattr(sharing._Sharing, "_watch", recorded)
    return names
