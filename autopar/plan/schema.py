"""The JSON Schemas of plan, cluster and cost-model files, made of what their readers check.

Editors find them by the line that every file starts with: a path relative to the file, so that it works
without a network and wherever the folder is moved.
"""

from __future__ import annotations

import json
from typing import Any

from autopar.hardware.keys import CLUSTER, DEVICE
from autopar.plan.keys import PLAN

_TITLES = {
    "plan": "autopar: a plan, whole or partial",
    "cluster": "autopar: a cluster",
    "cost-model": "autopar: the cost model of a device",
}
KINDS = tuple(_TITLES)
"""The files that have a schema."""


def json_schema(kind: str) -> dict[str, Any]:
    """The schema (draft 7, which editors know best) of a kind of file, one of ``KINDS``."""
    trees = {"plan": PLAN.schema, "cluster": CLUSTER.schema, "cost-model": DEVICE.schema}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": _TITLES[kind],
        **trees[kind](),
        "type": "object",
    }


def schema_text(kind: str) -> str:
    """The same as a file, byte for byte the same at every call."""
    return json.dumps(json_schema(kind), indent=1, ensure_ascii=False) + "\n"


def schema_file(kind: str) -> str:
    """Where the schema of a file lies, from the folder of the file."""
    return f".autopar/{kind}.schema.json"


def editor_line(kind: str) -> str:
    """The first line of a file: how editors find what completes and checks it."""
    return f"# yaml-language-server: $schema={schema_file(kind)}"
