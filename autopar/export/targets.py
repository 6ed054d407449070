"""The tools that plans can be exported to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from autopar.export.accelerate import to_accelerate
from autopar.export.exported import Exported
from autopar.export.hf_tp_plan import to_hf_tp_plan
from autopar.export.megatron import to_megatron
from autopar.export.pytorch_script import to_pytorch
from autopar.export.subject import Subject
from autopar.export.torchtitan import to_torchtitan

TARGETS: Mapping[str, Callable[[Subject], Exported]] = MappingProxyType(
    {
        "megatron": to_megatron,
        "torchtitan": to_torchtitan,
        "hf-tp-plan": to_hf_tp_plan,
        "accelerate": to_accelerate,
        "pytorch": to_pytorch,
    }
)
"""By the word that ``--to`` takes."""
