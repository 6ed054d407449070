"""autopar: a declarative auto-parallel planner and compiler for PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopar.runtime.parallel import ParallelModel, parallelize

__all__ = ["ParallelModel", "__version__", "parallelize"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; what only reads plans and devices does not wait for it.
    if name in ("ParallelModel", "parallelize"):
        from autopar.runtime import parallel

        return getattr(parallel, name)
    raise AttributeError(f"module 'autopar' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), "ParallelModel", "parallelize"])
