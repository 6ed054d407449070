"""A question that ``torch.nn.Transformer`` asks of its masks, which no traced model can answer.

Where its caller does not say ``is_causal``, it compares the mask with the causal one, to compute faster where
they are equal. Tensors have no values while a model is traced. No is always a right answer: the mask is then
applied as any other is.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

_MOST_FRAMES = 12  # between the question and us: torch.export's own modes


def no_causal_shortcut(model: nn.Module) -> AbstractContextManager[object]:
    """While active, ``torch.nn.Transformer`` in a model takes no mask for the causal one that it would
    recognise; nothing where the model has none."""
    askers = (nn.TransformerEncoder, nn.TransformerDecoder)
    has_one = any(isinstance(module, askers) for module in model.modules())
    return NoCausalShortcut() if has_one else nullcontext()


class NoCausalShortcut(TorchFunctionMode):
    """While active, ``torch.nn.Transformer`` takes no mask for the causal one that it would recognise."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__ and _is_asked_by_transformer():
            return False
        return func(*args, **(kwargs or {}))


def _is_asked_by_transformer() -> bool:
    frame = sys._getframe(2)
    for _ in range(_MOST_FRAMES):
        if frame.f_code.co_filename == transformer.__file__:
            return frame.f_code.co_name == "_detect_is_causal_mask"
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False
