from pathlib import Path

import pytest

from autopar.errors import PlanError
from autopar.plan.decisions import ClusterReference, Mesh, PatternLine, Precision, ScheduleName
from autopar.plan.read import parse_plan, read_plan

PLAN = """\
version: 1
model: {source: examples/gpt.py, args: {n_layer: 24}, fingerprint: 3f9c}
cluster: {device: h100-sxm-80gb, nodes: 1, devices_per_node: 8}
batch: {global: 256, micro: 8}
mesh: {pipeline: 2, data: 2, tensor: 2}
precision: bf16
optimizer: adamw
pipeline:
  schedule: 1f1b
  virtual: 1
  stages:
    - [wte, wpe, blocks.0-11]
    - [blocks.12-23, ln_f, lm_head, loss]
tensor:
  wte: vocab
  blocks.*.attn.qkv: column
  blocks.*.attn.proj: shard( 0 ,3 )
  "*": replicate
activations: {blocks.*: sequence}
zero: [1, 3]
recompute: {blocks.0-5: full, blocks.6-23: none}
offload: [activations, optimizer]
compile: true
predicted: {anything: {at: all}}
"""


def edited(old: str, new: str) -> str:
    assert PLAN.count(old) >= 1
    return PLAN.replace(old, new, 1)


def test_read_plan_gives_every_decision(tmp_path: Path) -> None:
    file = tmp_path / "gpt.yaml"
    file.write_text(PLAN)
    plan = read_plan(file)
    assert plan.model is not None and plan.model.source == "examples/gpt.py"
    assert plan.model.args == {"n_layer": 24} and plan.model.fingerprint == "3f9c"
    assert plan.cluster == ClusterReference("h100-sxm-80gb", 1, 8)
    assert (plan.global_batch, plan.micro_batch, plan.num_micro_batches) == (256, 8, 16)
    assert plan.mesh == Mesh(2, 2, 2)
    assert plan.precision is Precision.BF16 and plan.schedule is ScheduleName.ONE_F_ONE_B
    assert plan.stages is not None
    assert plan.stages[0] == ("wte", "wpe", *(f"blocks.{i}" for i in range(12)))
    assert plan.stages[1][-3:] == ("ln_f", "lm_head", "loss")
    assert plan.tensor[2] == PatternLine("blocks.*.attn.proj", "shard(0, 3)")
    assert [line.line for line in plan.tensor] == [15, 16, 17, 18]
    assert plan.zero == (1, 3)
    assert plan.recompute == (PatternLine("blocks.0-5", "full"), PatternLine("blocks.6-23", "none"))
    assert plan.offload == "optimizer,activations"
    assert plan.compile is True
    assert plan.places["mesh.tensor"] == (5, 30) and plan.places["pipeline.stages.1"] == (13, 7)
    assert plan.path == str(file)


def test_read_plan_takes_a_partial_plan_and_leaves_the_rest_open() -> None:
    plan = parse_plan("mesh: {tensor: 4}\nbatch:\nrecompute: full\n")
    assert plan.mesh == Mesh(None, None, 4)
    assert plan.recompute == (PatternLine("*", "full"),)
    assert plan.global_batch is None and plan.stages is None and plan.tensor == ()


def test_read_plan_takes_numbers_as_names_of_blocks() -> None:
    plan = parse_plan("pipeline: {stages: [[0, 1-2], [3, loss]]}\ntensor: {0: column}\n")
    assert plan.stages == (("0", "1", "2"), ("3", "loss"))
    assert plan.tensor == (PatternLine("0", "column"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            edited("tensor:\n", "tensr:\n"),
            r"^p.yaml:14:\d+: 'tensr' is not a key of a plan; did you mean 'tensor'\?",
        ),
        (
            edited("micro:", "mikro:"),
            r"^p.yaml:4:\d+: 'mikro' is not a key in 'batch'; did you mean 'micro'\? \(known: g",
        ),
        (
            edited("bf16", "bf61"),
            r"^p.yaml:6:\d+: 'precision' is 'bf61'; did you mean 'bf16'\? \(allowed: bf16, fp16, fp",
        ),
        (edited("1f1b", "f1b1"), r"^p.yaml:9:\d+: 'pipeline.schedule' is 'f1b1'.*gpipe"),
        (edited("adamw", "adamv"), r"^p.yaml:7:\d+: 'optimizer' is 'adamv'; did you mean 'adam"),
        (
            edited("vocab", "vocabulary"),
            r"^p.yaml:15:\d+: 'tensor.wte' is 'vocabulary'; did you mean 'vocab'\?.*shard\(d\)",
        ),
        (
            edited("sequence", "column"),
            r"^p.yaml:19:\d+: 'activations.blocks.\*' is 'column' \(allowed: replicate, seq",
        ),
        (
            edited("full,", "always,"),
            r"^p.yaml:21:\d+: 'recompute.blocks.0-5' is 'always' \(allowed: none, selective, f",
        ),
        (edited("full,", "yes,"), r"^p.yaml:21:\d+: 'recompute.blocks.0-5' is true \(allowed: none"),
        (edited("zero: [1, 3]", "zero: 4"), r"^p.yaml:20:\d+: 'zero' is 4; write a whole number from 0 to 3"),
        (edited("zero: [1, 3]", "zero: [1, 3, 3]"), r"^p.yaml:20:\d+: zero lists 3 levels for 2 stages"),
        (edited("zero: [1, 3]", "zero: {a: 1}"), r"^p.yaml:20:\d+: 'zero' is a mapping"),
        (edited("zero: [1, 3]", "zero: []"), r"^p.yaml:20:\d+: 'zero' is an empty list"),
        (edited("compile: true", "compile: 1"), r"^p.yaml:23:\d+: 'compile' is 1; write true or false"),
        (
            edited("[activations, optimizer]", "disk"),
            r"^p.yaml:22:\d+: 'offload' is 'disk' \(allowed: none, opt",
        ),
        (
            edited("[activations, optimizer]", "[optimizer, optimizer]"),
            r"^p.yaml:22:\d+: 'offload' names .* twice",
        ),
        (
            edited("tensor: 2}", "tensor: 0}"),
            r"^p.yaml:5:\d+: 'mesh.tensor' is 0; write a whole number of at least 1",
        ),
        (
            edited("tensor: 2}", "tensor: two}"),
            r"^p.yaml:5:\d+: 'mesh.tensor' is the text 'two'; write a whole number",
        ),
        (edited("tensor: 2}", "tensor: 2.0}"), r"^p.yaml:5:\d+: 'mesh.tensor' is 2.0; write a whole"),
        (edited("tensor: 2}", "tensor: true}"), r"^p.yaml:5:\d+: 'mesh.tensor' is true; write a whole"),
        (edited("tensor: 2}", "tensor: [2]}"), r"^p.yaml:5:\d+: 'mesh.tensor' is a list; write a whole"),
        (
            edited("tensor: 2}", "tensor: 4}"),
            r"^p.yaml:5:\d+: the mesh pipeline 2 x data 2 x tensor 4 is 16 devices, but",
        ),
        (
            edited(", tensor: 2}", "}").replace("data: 2", "data: 3").replace("global: 256", "global: 240"),
            r"^p.yaml:5:\d+: the mesh .* does not divide the 8",
        ),
        (
            edited("micro: 8", "micro: 7"),
            r"^p.yaml:4:\d+: batch.micro 7 x mesh.data 2 = 14 does not divide batch.global 2",
        ),
        (
            edited(", micro: 8", "").replace("global: 256", "global: 15"),
            r"^p.yaml:\d+:\d+: mesh.data 2 does not divide batch.global 15",
        ),
        (
            edited("blocks.12-23", "blocks.11-23"),
            r"^p.yaml:13:\d+: stage 1 names block 'blocks.11' again; it is already i",
        ),
        (edited("wte, wpe", "wte, wte"), r"^p.yaml:12:\d+: stage 0 names block 'wte' twice"),
        (edited("blocks.0-11", "blocks.11-0"), r"^p.yaml:12:\d+: .*'blocks.11-0' runs backwards"),
        (edited("blocks.0-11", "blocks.0-1111111"), r"^p.yaml:12:\d+: .*1111112 names"),
        (edited("[blocks.12-23, ln_f, lm_head, loss]", "[]"), r"^p.yaml:13:\d+: stage 1 is empty"),
        (
            edited("[blocks.12-23, ln_f, lm_head, loss]", "loss"),
            r"^p.yaml:13:\d+: 'pipeline.stages.1' is the text 'loss';",
        ),
        (
            edited("    - [blocks.12", "    - [x]\n    - [blocks.12"),
            r"^p.yaml:\d+:\d+: (there are 3 stages|zero lists 2)",
        ),
        (
            edited("virtual: 1", "virtual: 2"),
            r"^p.yaml:10:\d+: schedule 1f1b runs one stage on each rank, but virtual is",
        ),
        (
            edited("version: 1", "version: 2"),
            r"^p.yaml:1:\d+: the plan is of version 2; this autopar reads 1",
        ),
        (edited("version: 1", "version: one"), r"^p.yaml:1:\d+: 'version' is the text 'one'"),
        (edited("source: examples/gpt.py, ", ""), r"^p.yaml:2:\d+: 'model' has no source"),
        (
            edited("n_layer: 24", "n_layer: [1]"),
            r"^p.yaml:2:\d+: 'model.args.n_layer' is a list; write one number",
        ),
        (edited("3f9c", "3990"), r"^p.yaml:2:\d+: 'model.fingerprint' is 3990; write a text"),
        (edited("device: h100-sxm-80gb, ", ""), r"^p.yaml:3:\d+: 'cluster' has no device"),
        (edited("nodes: 1", "nodes: 1, gpus: 3"), r"^p.yaml:3:\d+: 'gpus' is not a key in 'cluster'"),
        (
            edited("mesh: {pipeline: 2, data: 2, tensor: 2}", "mesh: 2x2x2"),
            r"^p.yaml:5:\d+: 'mesh' is the text '2x2x2'; wri",
        ),
        (
            edited("bf16\n", "bf16\nprecision: fp16\n"),
            r"^p.yaml:7:\d+: 'precision' is said twice \(first at line 6\)",
        ),
        (edited("  wte: vocab", "  wte: vocab\n  wte: vocab"), r"^p.yaml:16:\d+: 'wte' is said twice"),
        (edited('"*": replicate', "*: replicate"), r"^p.yaml:18:\d+: "),
        (edited('"*": replicate', "a..b: replicate"), r"^p.yaml:18:\d+: 'a..b' in 'tensor' names nothing"),
        (edited("zero: [1, 3]", "zero: &z 1"), r"^p.yaml:20:\d+: anchors"),
        (edited("zero: [1, 3]", "zero: !!int 1"), r"^p.yaml:20:\d+: tags"),
        (PLAN[:200], r"^p.yaml:\d+:\d+: not valid YAML"),
        ("- a\n- b\n", r"^p.yaml:1:\d+: the file is a list; write a mapping"),
        ("", r"^p.yaml: the file is empty; `autopar plan"),
        ("# nothing\n", r"^p.yaml: the file is empty"),
        (b"version: 1\nprecision: \xff\n", r"^p.yaml:2:\d+: byte 0xff is not UTF-8"),
    ],
)
def test_read_plan_refuses_with_line_and_remedy(text: str | bytes, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        parse_plan(text, "p.yaml")
    assert str(caught.value).count("\n") == len(caught.value.problems) - 1


def test_read_plan_names_a_file_that_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none.yaml: cannot read the file: No such file.*; check the path"):
        read_plan(tmp_path / "none.yaml")
    with pytest.raises(PlanError, match="cannot read the file: Is a directory"):
        read_plan(tmp_path)


def test_read_plan_refuses_a_huge_file(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    file.write_bytes(b"#" * (5 << 20))
    with pytest.raises(PlanError, match="larger than 1 MiB"):
        read_plan(file)
