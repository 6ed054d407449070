"""Turning an exporter's exception into the user's line, what is wrong there, and what to do."""

from __future__ import annotations

import linecache
import re
import traceback

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
    (
        r"aten\._ctc_loss",
        "the work space of ctc_loss has a size that depends on the lengths; make the loss an operator of "
        "your own (torch.library.custom_op with register_fake and register_autograd)",
    ),
    (
        r"failed to unpack[\s\S]*nn/modules/rnn\.py|in pack_padded_sequence",
        "packed sequences have shapes that depend on the lengths; run the layer on the padded batch, and "
        "take the last valid step with torch.gather",
    ),
    (
        r"Unsupported dtype (BFloat16|Half)",
        "the operator does not know 16-bit numbers; plan with --precision fp32, or cast to float32 around it "
        "(torch.fft.fft(x.float()))",
    ),
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
    text += "".join(traceback.format_tb(error.__traceback__))
    meaning = next((meaning for pattern, meaning in _CAUSES if re.search(pattern, text)), None)
    if meaning is None:
        return CaptureError(
            f"{where}the model cannot be captured ({first}); run its forward and loss on one batch of "
            "example_batch() to see whether they work at all; if they do, write that line in other operators"
        )
    path, _, number = line.rpartition(":")
    if (
        path
        and "depends on the values" in meaning
        and _READS_VALUE.search(linecache.getline(path, int(number)))
    ):
        meaning = READS_VALUE
    return CaptureError(f"{where}the model cannot be captured ({first}): {meaning}")
