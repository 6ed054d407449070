"""Turning an exporter's exception into the user's line, what is wrong there, and what to do."""

from __future__ import annotations

import linecache
import re

from autopar.capture.user_code import error_line, user_line
from autopar.errors import CaptureError

# What the user's line looks like where it takes a number out of a tensor.
_READS_VALUE = re.compile(r"\.(item|tolist|numpy)\(|\b(float|int|bool)\(")
READS_VALUE = (
    "the code reads the value of a tensor (.item(), .tolist(), float(tensor), ...); "
    "keep it in a tensor, or compute it once in __init__"
)

# (exception class or words of its message, what it means and what to do), the first that fits.
_CAUSES = (
    (r"DataDependentOutputException|_local_scalar_dense|aten\.equal", READS_VALUE),
    (
        r"GuardOnDataDependentSymNode|data-dependent|DynamicOutputShapeException",
        "the control flow or a shape depends on the values of tensors; "
        "use torch.where or masking instead of `if`, boolean indexing or loops over tensors",
    ),
    (
        r"Constraints violated|ConstraintViolation",
        "the model works for one batch size only; "
        "take sizes from the inputs (x.shape[0]) instead of fixing them",
    ),
    (
        r"UnsupportedOperatorException|no fake impl|MetaKernel",
        "an operator has no shape function, so it cannot be traced without data; "
        "register one with torch.library.register_fake, or replace the operator",
    ),
)


def explain_export_failure(error: BaseException) -> CaptureError:
    """The error that the user sees when tracing fails; to be raised from ``error``."""
    line = user_line(str(error)) or error_line(error)
    where = f"{line}: " if line else "the model's forward: "
    first = next((piece for piece in str(error).strip().splitlines() if piece.strip()), "")
    first = f"{type(error).__name__}: {first.strip()}"[:300]
    text = f"{type(error).__name__}: {error}"
    meaning = next((meaning for pattern, meaning in _CAUSES if re.search(pattern, text)), None)
    if meaning is None:
        return CaptureError(
            f"{where}the model cannot be captured ({first}); run its forward and loss on one batch of "
            "example_batch() to see whether they work at all"
        )
    path, _, number = line.rpartition(":")
    if (
        path
        and "depends on the values" in meaning
        and _READS_VALUE.search(linecache.getline(path, int(number)))
    ):
        meaning = READS_VALUE
    return CaptureError(f"{where}the model cannot be captured ({first}): {meaning}")
