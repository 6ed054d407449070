"""autopar: a declarative auto-parallel planner and compiler for PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopar.runtime.checkpoint_folders import latest_checkpoint
    from autopar.runtime.export import export_checkpoint
    from autopar.runtime.parallel import ParallelModel, parallelize

__all__ = ["ParallelModel", "__version__", "export_checkpoint", "latest_checkpoint", "parallelize"]

__version__ = "0.1.0"

# torch takes seconds to import; what only reads plans and devices does not wait for it.
_HOMES = {
    "ParallelModel": "autopar.runtime.parallel",
    "export_checkpoint": "autopar.runtime.export",
    "latest_checkpoint": "autopar.runtime.checkpoint_folders",
    "parallelize": "autopar.runtime.parallel",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'autopar' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
