import re

import pytest

from autopar.errors import UsageError
from autopar.plan.decisions import Mesh, PatternLine, Precision, ScheduleName
from autopar.plan.pins import parse_set, parse_sets


def test_parse_sets_reads_every_kind_of_key() -> None:
    pins = parse_sets(
        [
            "mesh.tensor=4",
            "mesh.data = 2",
            "batch.micro=8",
            "batch.global=64",
            "zero=3",
            "pipeline.schedule=1f1b",
            "tensor.blocks.*.attn.qkv=column",
            "activations.blocks.*=sequence",
            "recompute.blocks.0-3=full",
            "precision=bf16",
            "pipeline.stages=[[a, b.0-1], [c]]",
        ]
    )
    assert pins.mesh == Mesh(None, 2, 4)
    assert (pins.micro_batch, pins.global_batch, pins.zero) == (8, 64, 3)
    assert pins.schedule is ScheduleName.ONE_F_ONE_B and pins.precision is Precision.BF16
    assert pins.tensor == (PatternLine("blocks.*.attn.qkv", "column"),)
    assert pins.activations == (PatternLine("blocks.*", "sequence"),)
    assert pins.recompute == (PatternLine("blocks.0-3", "full"),)
    assert pins.stages == (("a", "b.0", "b.1"), ("c",))
    assert str(pins.error("mesh.tensor", "too many")) == "--set mesh.tensor=4: too many"


def test_parse_sets_reads_bounds_without_quotes() -> None:
    pins = parse_sets(["mesh.tensor=<=4", "mesh.data=>=2", "zero=1-2", "recompute.a=full|selective"])
    assert {key: str(bound) for key, bound in pins.bounds.items()} == {
        "mesh.tensor": "<=4",
        "mesh.data": ">=2",
        "zero": "1-2",
    }
    assert pins.recompute == (PatternLine("a", "selective | full"),)
    assert parse_sets(["mesh.tensor=<=4", "mesh.tensor=2"]).mesh.tensor == 2
    with pytest.raises(UsageError, match=r"mesh.tensor is 8 here and <=4 in --set mesh.tensor=<=4; both"):
        parse_sets(["mesh.tensor=<=4", "mesh.tensor=8"])


def test_parse_sets_of_nothing_constrains_nothing() -> None:
    assert parse_sets([]).mesh == Mesh()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mesh.tensr=4",
            "--set mesh.tensr=4: 'mesh.tensr' cannot be set; did you mean 'mesh.tensor'? (known: batch.g",
        ),
        ("micro=4", "'micro' cannot be set; did you mean 'batch.micro'?"),
        ("mesh=4", "'mesh' cannot be set"),
        ("zero.0=3", "'zero.0' cannot be set"),
        ("mesh.tensor", "write --set KEY=VALUE"),
        ("mesh.tensor=", "write --set KEY=VALUE"),
        ("=4", "write --set KEY=VALUE"),
        (
            "mesh.tensor=four",
            "--set mesh.tensor=four: 'mesh.tensor' is the text 'four'; write a whole number",
        ),
        ("mesh.tensor=-1", "'mesh.tensor' is -1; write a whole number of at least 1"),
        ("recompute=ful", "'recompute' is 'ful'; did you mean 'full'?"),
        ("tensor=[column", "not valid YAML"),
        ("model.source=x.py", "'model' is not set this way; name the model as the target"),
        ("cluster.device=t4", "'cluster' is not set this way; choose the devices with --gpus"),
    ],
)
def test_parse_set_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_set(text)


def test_parse_sets_names_both_of_a_contradiction() -> None:
    with pytest.raises(UsageError, match=r"--set zero=3: zero is 3 here and 0 in --set zero=0; both"):
        parse_sets(["zero=0", "zero=3"])
    with pytest.raises(UsageError, match=r"'blocks.0' none here, but --set recompute=full gives '\*' full"):
        parse_sets(["recompute=full", "recompute.blocks.0=none"])
    assert len(parse_sets(["recompute.blocks.0=none", "recompute=full"]).recompute) == 2
