"""What stands in an output for a tensor that a plan does not compute."""

from __future__ import annotations

from typing import Any, NoReturn

from autopar.errors import UsageError


class NotComputed:
    """In the place of a tensor on which the captured loss does not depend: whatever is done with it says so.

    Args:
        label: place in the output, for people: ``.hidden``, ``[1]``.
    """

    def __init__(self, label: str) -> None:
        self._label = label

    def __repr__(self) -> str:
        return f"<output{self._label}: not computed under a plan>"

    def refuse(self, *_: object, **__: object) -> NoReturn:
        """Says what to do.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"the module's output{self._label} is not computed under a plan: the loss does not depend on it, "
            "so that the captured graph does not hold it; let the loss read it (+ 0 * output.sum()), or do "
            "without"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copies and containers ask for these
            raise AttributeError(name)
        self.refuse()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, cls):
                    part.refuse()
        return NotImplemented

    __getitem__ = __iter__ = __len__ = __float__ = __bool__ = __neg__ = refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = refuse
    __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = refuse
