"""``--set key=value``: one decision on the command line, as a partial plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autopar.errors import PlanError, UsageError, closest_match
from autopar.hardware.yaml_lines import parse_yaml
from autopar.plan.decisions import PATTERN_SECTIONS, Plan
from autopar.plan.keys import SECTIONS
from autopar.plan.merge import merge
from autopar.plan.read import plan_of_document

_ELSEWHERE = {
    "model": "name the model as the target and its arguments with --arg",
    "cluster": "choose the devices with --gpus, --device or --cluster",
    "version": "it is the version of the plan file",
    "predicted": "it is what autopar predicts",
}

KEYS = tuple(
    key
    for section, below in SECTIONS.items()
    if section not in _ELSEWHERE
    for key in (
        [f"{section}.{name}" for name in below]
        or ([section, f"{section}.PATTERN"] if section in PATTERN_SECTIONS else [section])
    )
)
"""What can be set; ``PATTERN`` stands for a module or block name such as ``blocks.*.attn.qkv``."""


def parse_set(text: str) -> Plan:
    """The partial plan of one ``--set``: ``mesh.tensor=4``, ``zero=3``, ``recompute.blocks.*=full``.

    Raises:
        UsageError: it is not ``key=value``, the key is unknown, or the value is not one that the key takes.
    """
    key, equals, written = text.partition("=")
    key, label = key.strip(), f"--set {text}"
    if not equals or not key or not written.strip():
        raise UsageError(f"{label}: write --set KEY=VALUE, e.g. --set mesh.tensor=4")
    section, _, rest = key.partition(".")
    if section in _ELSEWHERE:
        raise UsageError(f"{label}: '{section}' is not set this way; {_ELSEWHERE[section]}")
    if not _is_known(section, rest):
        raise UsageError(
            f"{label}: '{key}' cannot be set{closest_match(key, KEYS)} (known: {', '.join(KEYS)})"
        )
    try:
        # Of a bound, YAML would take the first sign for its own.
        is_bound = written.strip().startswith(">=")
        value: Any = written.strip() if is_bound else parse_yaml(written, label, PlanError)[0]
        document = {section: {rest: value} if rest else value}
        return plan_of_document(document, {}, label)
    except PlanError as problem:
        raise UsageError(str(problem)) from problem


def parse_sets(texts: Iterable[str]) -> Plan:
    """All ``--set`` together.

    Raises:
        UsageError: see ``parse_set``; or two of them contradict each other.
    """
    pins = [parse_set(text) for text in texts]
    try:
        return merge(*pins)
    except PlanError as problem:
        raise UsageError(str(problem)) from problem


def _is_known(section: str, rest: str) -> bool:
    if section in PATTERN_SECTIONS:
        return True
    if section not in SECTIONS:
        return False
    return rest in SECTIONS[section] if SECTIONS[section] else not rest
