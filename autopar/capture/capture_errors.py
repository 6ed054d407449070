"""Turning an exporter's exception into the user's line, what is wrong there, and what to do."""

from __future__ import annotations

import re

from autopar.capture.user_code import error_line, user_line
from autopar.errors import CaptureError

# (exception class or words of its message, what it means, what to do), the first that fits.
_CAUSES = (
    (
        r"DataDependentOutputException|_local_scalar_dense|\.item\(\)|aten\.equal|aten\.nonzero",
        "the code reads the value of a tensor (.item(), .tolist(), int(tensor) or nonzero)",
        "keep the value in a tensor, or compute it once in __init__",
    ),
    (
        r"GuardOnDataDependentSymNode|data-dependent|Could not guard|DynamicOutputShapeException|u\d+",
        "the control flow or a shape depends on the values of tensors",
        "use torch.where or masking instead of `if`, boolean indexing or loops over tensors",
    ),
    (
        r"Constraints violated|ConstraintViolation|marked.*dynamic.*specializ|specialized",
        "the model works for one batch size only",
        "take sizes from the inputs (x.shape[0]) instead of fixing them",
    ),
    (
        r"UnsupportedOperatorException|no fake impl|no meta|could not find.*fake|MetaKernel",
        "an operator has no shape function, so it cannot be traced without data",
        "register one with torch.library.register_fake, or replace the operator",
    ),
)


def explain_export_failure(error: BaseException) -> CaptureError:
    """The error that the user sees when tracing fails.

    Raises nothing: it returns the error to be raised from ``error``.
    """
    text = f"{type(error).__name__}: {error}"
    line = user_line(str(error)) or error_line(error)
    where = f"{line}: " if line else "the model's forward: "
    first = next((piece for piece in str(error).strip().splitlines() if piece.strip()), "")
    first = f"{type(error).__name__}: {first.strip()}"[:300]
    for pattern, meaning, remedy in _CAUSES:
        if re.search(pattern, text):
            return CaptureError(f"{where}the model cannot be captured: {meaning} ({first}); {remedy}")
    return CaptureError(
        f"{where}the model cannot be captured ({first}); run its forward and loss on one batch of "
        "example_batch() to see whether they work at all"
    )
