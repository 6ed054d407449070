"""The JSON Schemas against the readers and against every file that comes with autopar."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from autopar.errors import FileError
from autopar.hardware import keys as hardware_keys
from autopar.hardware.catalog import cost_models_folder
from autopar.hardware.fields import Fields
from autopar.hardware.kinds import Section
from autopar.hardware.read_cluster import load_cluster
from autopar.hardware.read_device import read_device
from autopar.hardware.yaml_lines import parse_yaml, read_yaml
from autopar.plan.keys import SECTIONS
from autopar.plan.read import parse_plan
from autopar.plan.schema import KINDS, editor_line, json_schema, schema_file, schema_text
from tests.plan.test_read import PLAN

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = """\
version: 1
device: a100-sxm-80gb
nodes: 2
devices_per_node: 8
memory: {capacity: {value: 60, unit: GiB}}
intra_node:
  bandwidth: {value: 30, unit: GB/s}
  ring_bandwidth: {value: 25, unit: GB/s}
  latency: {value: 9, unit: us}
network:
  bandwidth_per_device: {value: 12.5, unit: GB/s}
  efficiency: {value: 0.7, unit: fraction}
  latency: {value: 4, unit: us}
"""


def shipped(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.yaml"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_are_schemas(kind: str) -> None:
    jsonschema.Draft7Validator.check_schema(json_schema(kind))


@pytest.mark.parametrize("path", [*shipped("plans"), *shipped("cost_models")], ids=lambda p: p.name)
def test_every_file_that_is_shipped_is_valid_and_names_its_schema(path: Path) -> None:
    kind = "cost-model" if path.parent.name == "cost_models" else "plan"
    document, _ = read_yaml(path, FileError)
    jsonschema.validate(document, json_schema(kind))
    assert path.read_text().startswith(editor_line(kind))
    assert (path.parent / schema_file(kind)).read_text() == schema_text(kind)


def test_every_key_of_a_plan_is_in_the_schema_and_the_other_way_round() -> None:
    properties = json_schema("plan")["properties"]
    assert set(properties) == set(SECTIONS)
    for section, below in SECTIONS.items():
        assert set(properties[section].get("properties", {})) == set(below)
    document, _ = parse_yaml(PLAN, "p", FileError)
    jsonschema.validate(document, json_schema("plan"))
    for section, below in SECTIONS.items():
        for key in (section, *(f"{section}.{name}" for name in below)):
            inner = {"x": 1} if key == section and below else {key.partition(".")[2] or "x": object()}
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({f"{section}x": inner}, json_schema("plan"))


def known_keys(section: Section, prefix: str = "") -> Iterator[str]:
    for name, kind in section.keys.items():
        yield f"{prefix}{name}"
        if isinstance(kind, Section):
            yield from known_keys(kind, f"{prefix}{name}.")


READS = ("text", "texts", "flag", "count", "number", "optional_number", "table", "section", "items")


@pytest.mark.parametrize("kind", ["cost-model", "cluster"])
def test_every_key_that_is_described_is_read_and_the_other_way_round(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = hardware_keys.DEVICE if kind == "cost-model" else hardware_keys.CLUSTER
    path = tmp_path / "file.yaml"
    path.write_text(CLUSTER if kind == "cluster" else (cost_models_folder() / "cpu.yaml").read_text())
    read: set[str] = set()
    described = Section.inside

    def forgotten(self: Section, fields: Fields) -> Iterator[Any]:
        found = list(described(self, fields))
        if fields.path == str(path):
            read.clear()  # what the description looks at does not count
        return iter(found)

    monkeypatch.setattr(Section, "inside", forgotten)
    for name in READS:
        monkeypatch.setattr(Fields, name, recorded(getattr(Fields, name), path, read))
    (load_cluster if kind == "cluster" else read_device)(path)
    known = set(known_keys(tree))
    assert {key for key in read if key in known or key.rpartition(".")[0] not in leaves(tree)} <= known
    given = {key for key in known if present(key, read_yaml(path, FileError)[0])}
    assert given - {"version", "sources"} <= read


def recorded(method: Any, path: Path, read: set[str]) -> Any:
    def wrapper(self: Fields, key: str, *args: Any, **kwargs: Any) -> Any:
        if self.path == str(path):
            read.add(f"{self.key}.{key}".lstrip("."))
        return method(self, key, *args, **kwargs)

    return wrapper


def leaves(section: Section, prefix: str = "") -> set[str]:
    """Keys whose values hold no keys that the tree names one by one; and what lies deeper in lists."""
    found = set()
    for name, kind in section.keys.items():
        if isinstance(kind, Section):
            found |= leaves(kind, f"{prefix}{name}.")
        else:
            found |= {f"{prefix}{name}", *(f"{prefix}{name}.{i}" for i in range(9))}
    return found


def present(key: str, document: Any) -> bool:
    for name in key.split("."):
        if not isinstance(document, dict) or name not in document:
            return False
        document = document[name]
    return True


def test_what_the_schema_refuses_the_reader_refuses_too() -> None:
    for old, new in [
        ("tensor: 2}", "tensor: two}"),
        ("zero: [1, 3]", "zero: 4"),
        ("micro:", "mikro:"),
        ("full,", "always,"),
        ("[activations, optimizer]", "disk"),
    ]:
        text = PLAN.replace(old, new, 1)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(parse_yaml(text, "p", FileError)[0], json_schema("plan"))
        with pytest.raises(FileError):
            parse_plan(text, "p")
