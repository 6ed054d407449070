from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.plan.decisions import (
    MESH_AXES,
    ClusterReference,
    Mesh,
    ModelReference,
    PatternLine,
    Plan,
    Precision,
    Recompute,
    ScheduleName,
)
from autopar.plan.keys import OPTIMIZERS, TENSOR_WORDS
from autopar.plan.read import parse_plan
from autopar.plan.write import write_plan

texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufeff"), min_size=1
)
words = texts.filter(lambda text: text.strip() != "")
components = st.from_regex(r"[a-z_]{1,4}[0-9]{0,2}|0|[1-9][0-9]?", fullmatch=True)
names = st.lists(components, min_size=1, max_size=3).map(".".join)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts
)

VIRTUAL = {ScheduleName.INTERLEAVED: 3, ScheduleName.ZBV: 2}


def lines(values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[PatternLine, ...]]:
    patterns = st.one_of(
        names, st.sampled_from(["*", "blocks.*", "blocks.0-5.attn", "*.mlp", "on", "null", "1e3"])
    )
    return st.dictionaries(patterns, values, max_size=4).map(
        lambda pairs: tuple(PatternLine(pattern, word) for pattern, word in pairs.items())
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans that agree with themselves, whole or partial."""
    order = draw(st.none() | st.permutations(MESH_AXES).map(tuple))
    mesh = Mesh(*(draw(st.none() | st.integers(1, 4)) for _ in range(3)), order)
    schedule = draw(st.none() | st.sampled_from(ScheduleName))
    virtual = draw(st.none() | st.just(VIRTUAL.get(schedule, 1)))
    degrees = [degree for degree in (mesh.pipeline, mesh.data, mesh.tensor) if degree]
    product = 1
    for degree in degrees:
        product *= degree
    blocks = draw(st.lists(names, unique=True, max_size=12))
    num_stages = mesh.pipeline or draw(st.integers(1, 4))
    num_stages *= virtual or VIRTUAL.get(schedule, 1)
    stages = None
    if len(blocks) >= num_stages:
        size = len(blocks) // num_stages
        cuts = [i * size for i in range(num_stages)] + [len(blocks)]
        stages = tuple(tuple(blocks[a:b]) for a, b in pairwise(cuts))
    micro = draw(st.none() | st.integers(1, 16))
    levels = st.integers(0, 3)
    zero = (
        draw(st.none() | levels | st.tuples(*[levels] * num_stages)) if stages else draw(st.none() | levels)
    )
    return Plan(
        model=draw(
            st.none() | st.builds(ModelReference, words, st.dictionaries(words, scalars), st.none() | words)
        ),
        cluster=draw(
            st.none()
            | st.builds(
                ClusterReference,
                words,
                st.just(1),
                st.just(product),
                st.none() | words,
                st.none() | st.integers(1, 2**40),
            )
        ),
        global_batch=draw(st.none() | st.integers(1, 9).map(lambda n: n * (micro or 1) * (mesh.data or 1))),
        micro_batch=micro,
        mesh=mesh,
        precision=draw(st.none() | st.sampled_from(Precision)),
        optimizer=draw(st.none() | st.sampled_from(OPTIMIZERS)),
        schedule=schedule,
        virtual=virtual,
        stages=stages,
        tensor=draw(lines(st.sampled_from([*TENSOR_WORDS, "shard(1)", "shard(0, 3)"]))),
        activations=draw(lines(st.sampled_from(["sequence", "replicate", "batch"]))),
        operators=draw(lines(st.just("shard(2), replicate -> shard(2)"))),
        zero=zero,
        shard_group=draw(st.none() | st.just(mesh.data or 8)),
        recompute=draw(lines(st.sampled_from([str(word) for word in Recompute]))),
        offload=draw(st.none() | st.sampled_from(["none", "optimizer", "optimizer,activations"])),
        compile=draw(st.none() | st.booleans()),
    )


@settings(max_examples=150, deadline=None)
@given(plans(), st.booleans())
def test_write_then_read_gives_the_same_plan(plan: Plan, with_predicted: bool) -> None:
    predicted = {"status": "optimal", "stages": [{"compute": "1.2 ms", "memory": {"total": "3 GiB: odd #"}}]}
    text = write_plan(plan, predicted if with_predicted else None)
    assert parse_plan(text) == plan
    assert write_plan(parse_plan(text), predicted if with_predicted else None) == text


def test_write_plan_reads_like_the_design() -> None:
    plan = Plan(
        model=ModelReference("examples/gpt.py", {"n_layer": 4}, "12345678"),
        cluster=ClusterReference("h100-sxm-80gb", 1, 8),
        global_batch=256,
        micro_batch=8,
        mesh=Mesh(2, 2, 2),
        precision=Precision.BF16,
        optimizer="adamw",
        schedule=ScheduleName.ONE_F_ONE_B,
        virtual=1,
        stages=(("wte", "blocks.0", "blocks.1"), ("blocks.2", "blocks.3", "ln_f", "loss")),
        tensor=(PatternLine("wte", "vocab"), PatternLine("*", "replicate")),
        activations=(PatternLine("blocks.*", "sequence"),),
        zero=1,
        recompute=(PatternLine("blocks.0-1", "full"), PatternLine("*", "none")),
        offload="none",
    )
    assert write_plan(plan) == _EXPECTED
    partial = write_plan(replace(plan, mesh=Mesh(tensor=2), stages=None, tensor=()))
    assert "mesh: {tensor: 2}" in partial and "stages:" not in partial and "\ntensor" not in partial


def test_write_plan_wraps_a_long_stage_inside_its_brackets() -> None:
    blocks = tuple(f"encoder.part_{i}.block_{i}x" for i in range(12))
    text = write_plan(Plan(stages=(blocks,)))
    assert max(map(len, text.splitlines())) <= 110
    assert parse_plan(text).stages == (blocks,)


_EXPECTED = """\
# yaml-language-server: $schema=.autopar/plan.schema.json
# Every line may be edited or deleted; `autopar check` re-costs this file, and
# `autopar plan MODEL --with FILE` fills in again whatever was deleted.
version: 1
model:
  source: examples/gpt.py
  args: {n_layer: 4}
  fingerprint: "12345678"                      # for another model the plan is refused
cluster: {device: h100-sxm-80gb, nodes: 1, devices_per_node: 8}
batch: {global: 256, micro: 8}                 # samples per step; per forward of one data rank
mesh: {pipeline: 2, data: 2, tensor: 2}        # the tensor axis varies fastest: it stays inside a node
precision: bf16                                # bf16 | fp16 | fp32; master weights are fp32
optimizer: adamw                               # adamw | adam | sgd | sgd-momentum: bytes of state
pipeline:
  schedule: 1f1b                               # gpipe | 1f1b | interleaved | zero-bubble | zbv
  virtual: 1                                   # stages a rank holds: interleaved 2 or more, zbv 2
  stages:                                      # every block exactly once, in order; ranges are inclusive
    - [wte, blocks.0-1]
    - [blocks.2-3, ln_f, loss]
tensor:                                        # column | row | vocab | replicate; the first match wins
  wte: vocab
  "*": replicate
activations: {blocks.*: sequence}              # what flows out of a block: replicate | sequence | batch
zero: 1                                        # over data, 1 splits optimizer, 2 + gradients, 3 + parameters
recompute: {blocks.0-1: full, "*": none}       # none | selective | full
offload: none                                  # none, or some of optimizer, parameters, activations
"""
