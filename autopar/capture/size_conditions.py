"""What a trace took for granted about the batch size, beyond its range.

Where Python makes a number of a symbolic size (``int(1.25 * tokens / experts)``) or branches on one, the
exporter computes it at the traced size and notes that as a condition. The graph holds where they hold.
"""

from __future__ import annotations

import sympy  # type: ignore[import-untyped]
import torch
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv

USUAL_SIZES = range(2, 65)
"""Sizes at which a graph must hold to be taken for one of every size."""


def size_conditions(program: ExportedProgram) -> tuple[sympy.Basic, ...]:
    """The conditions on the batch size under which the graph is the model; all true at the traced size."""
    environment = _environment(program)
    if environment is None:
        return ()
    known = set(environment.backed_var_to_val)
    found = [guard.expr for guard in environment.guards if guard.expr.free_symbols <= known]
    return tuple(condition for condition in dict.fromkeys(found) if not _holds_always(condition))


def hold_at(conditions: tuple[sympy.Basic, ...], size: int) -> bool:
    """Whether all conditions hold for a batch of ``size``."""
    return all(_at(condition, size) for condition in conditions)


def _environment(program: ExportedProgram) -> ShapeEnv | None:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt):
                return size.node.shape_env
    return None


def _at(condition: sympy.Basic, size: int) -> bool:
    # Every symbol of the inputs is the batch size.
    result = condition.xreplace(dict.fromkeys(condition.free_symbols, sympy.Integer(size)))
    return bool(result.doit() == sympy.true)


def _holds_always(condition: sympy.Basic) -> bool:
    """Whether it merely says that two entries of the batch have the same size."""
    size = sympy.Symbol("size", integer=True, positive=True)
    return bool(condition.xreplace(dict.fromkeys(condition.free_symbols, size)) == sympy.true)
