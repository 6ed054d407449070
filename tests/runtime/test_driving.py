"""A model under a plan, driven like any module: outputs, the user's own loss, backward passes that add up."""

from pathlib import Path

import pytest

from tests.runtime.expect import assert_refused
from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import ROOT, Case, check, run_cases

GPT = {"extra": {"inputs": ("tokens",)}}
TENSOR = {"tensor": 2, "lines": GPT_TENSOR}
SEQUENCE = {**TENSOR, "activations": "sequence"}
RESNET = {
    "model": str(ROOT / "examples" / "resnet.py"),
    "args": {"depth": 18, "width": 8, "image_size": 32, "num_classes": 12},
    "extra": {"inputs": ("images",)},
}
HF_GPT2 = {
    "model": str(ROOT / "examples" / "hf" / "gpt2"),
    "args": {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 32, "seq": 8, "dropout": 0.0},
    "extra": {"inputs": ("input_ids", "labels"), "loss": "module"},
}
T5 = {
    "model": str(ROOT / "examples" / "hf" / "t5"),
    "args": {
        "num_layers": 2,
        "num_decoder_layers": 2,
        "d_model": 16,
        "d_ff": 16,
        "d_kv": 8,
        "num_heads": 2,
        "vocab_size": 32,
        "seq": 8,
        "dropout": 0.0,
    },
    "extra": {"inputs": ("input_ids", "labels"), "loss": "module"},
}
LLAMA = {
    "model": str(ROOT / "examples" / "hf" / "llama"),
    "args": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 32,
        "seq": 8,
    },
    "extra": {"inputs": ("input_ids",), "without_labels": True},
}
# What the losses of these read of the outputs depends on labels: as their sizes, and through what hands back
# its argument.
VIT = {
    "model": str(ROOT / "examples" / "hf" / "vit"),
    "args": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "image_size": 32,
    },
    "extra": {"inputs": ("pixel_values",), "without_labels": True},
}
RECOMMENDER = {
    "model": str(ROOT / "examples" / "recommender.py"),
    "args": {"num_users": 40, "num_items": 20, "dim": 8},
    "extra": {"inputs": ("users", "items"), "without_labels": True},
}
TWO_OUTPUTS = {
    "model": str(Path(__file__).with_name("two_outputs.py")),
    "extra": {"inputs": ("x",), "without_labels": True},
}
LLAMA_TENSOR = (
    ("model.embed_tokens", "vocab"),
    ("model.layers.*.self_attn.q_proj", "column"),
    ("model.layers.*.self_attn.k_proj", "column"),
    ("model.layers.*.self_attn.v_proj", "column"),
    ("model.layers.*.self_attn.o_proj", "row"),
    ("model.layers.*.mlp.gate_proj", "column"),
    ("model.layers.*.mlp.up_proj", "column"),
    ("model.layers.*.mlp.down_proj", "row"),
    ("lm_head", "column"),
)


def case(name, subject, body="drive", **options):
    extra = {**subject["extra"], **options.pop("extra", {})}
    return Case(name, f"driving_bodies:{body}", **{**subject, "extra": extra}, options=options)


PERCEPTION = {"model": "perception", "extra": {"inputs": ("images", "waypoints"), "loss": "module"}}
NO_SYNC = {"no_sync": True}

DRIVEN = [
    *(
        case(f"zero{zero}", GPT, data=2, zero=zero, extra=NO_SYNC if zero < 2 else {}, num_micro_batches=3)
        for zero in (0, 1, 3)
    ),
    case("sequence-recompute", GPT, **SEQUENCE, recompute="full", extra=NO_SYNC),
    case("virtual-zero2", GPT, data=2, zero=2, schedule="zbv", virtual=2, extra=NO_SYNC),
    case("optimizer-away", GPT, data=2, offload="optimizer,activations"),
    case("recommender", RECOMMENDER, data=2, zero=3),
    case("perception", PERCEPTION, data=2, recompute="selective"),
]
INFERRED = [
    case("infer-pipeline", GPT, "infer", pipeline=2),
    case("infer-zbv", GPT, "infer", pipeline=2, schedule="zbv", virtual=2),
    case("infer-zero3", GPT, "infer", data=2, zero=3),
    case("infer-sequence", GPT, "infer", **SEQUENCE),
    case("infer-selective", GPT, "infer", **SEQUENCE, recompute="selective"),
]
DROPOUT = [
    case(f"dropout-{name}", GPT, "dropout", **options)
    for name, options in {
        "zero0": {"data": 2},
        "zero3-recompute": {"data": 2, "zero": 3, "recompute": "full"},
        "sequence": SEQUENCE,
    }.items()
]
HALF = [
    case(f"{precision}-{name}", GPT, "half", precision=precision, **options)
    for name, options in {"zero0": {"data": 2}, "zero3": {"data": 2, "zero": 3}}.items()
    for precision in ("bf16", "fp16")
]
OVERFLOWING = [
    case("overflow-zero0", GPT, "overflow", precision="fp16", data=2),
    case("overflow-zero3", GPT, "overflow", precision="fp16", data=2, zero=3, offload="optimizer"),
]
for each in (*HALF, *OVERFLOWING):
    each.dtype = {"bf16": "bfloat16", "fp16": "float16"}[each.options["precision"]]
for each in DROPOUT:
    each.args = {"dropout": 0.2}
TWO = [
    *DRIVEN,
    *INFERRED,
    *DROPOUT,
    *HALF,
    *OVERFLOWING,
    *(case(f"without-backward-zero{zero}", GPT, "without_backward", data=2, zero=zero) for zero in (1, 3)),
    case("two-outputs", TWO_OUTPUTS, "two_outputs", data=2, zero=3),
    case("two-outputs-pipeline", TWO_OUTPUTS, "two_outputs", pipeline=2),
    case("misuse", GPT, "misuse", data=2),
    case("misuse-pipeline", GPT, "misuse", pipeline=2),
]
# The other models, and mixes: a long run.
LONG_TWO = [
    case("resnet-zero0", RESNET, data=2, extra=NO_SYNC),
    case("resnet-tensor", RESNET, tensor=2, lines=(("head", "column"),)),
    case("hf-gpt2-zero1", HF_GPT2, data=2, zero=1, recompute="full"),
    case("llama-tensor", LLAMA, tensor=2, lines=LLAMA_TENSOR),
    case("infer-resnet", RESNET, "infer", pipeline=2),
    case("infer-hf-gpt2", HF_GPT2, "infer", pipeline=2),
    case("infer-llama", LLAMA, "infer", pipeline=2),
    case("infer-vit", VIT, "infer", pipeline=2),
    case("infer-t5", T5, "infer", pipeline=2),  # with an output of the first stage
    case("tensor", GPT, **TENSOR),
]
LONG_FOUR = [
    *(
        case(
            f"mix-zero{zero}-{recompute}-{words}",
            GPT,
            data=2,
            tensor=2,
            zero=zero,
            recompute=recompute,
            lines=GPT_TENSOR,
            activations=words,
            extra=NO_SYNC if zero % 2 else {},
        )
        for zero in range(4)
        for recompute in ("none", "selective", "full")
        for words in ("replicate", "sequence")
    ),
    case("shard-groups", GPT, data=4, zero=3, shard_group=2, extra=NO_SYNC),
    case("parameters-away", GPT, data=4, zero=3, offload="parameters"),
    case("resnet-mix", RESNET, data=2, tensor=2, zero=2, lines=(("head", "column"),), recompute="full"),
    case("hf-gpt2-mix", HF_GPT2, data=4, zero=2, recompute="selective", extra=NO_SYNC),
    case("llama-mix", LLAMA, data=2, tensor=2, zero=1, lines=LLAMA_TENSOR, activations="sequence"),
    case("infer-pipeline4", GPT, "infer", pipeline=4, schedule="interleaved", virtual=2),
    case("infer-mix", LLAMA, "infer", pipeline=2, tensor=2, lines=LLAMA_TENSOR),
    case("infer-resnet-mix", RESNET, "infer", pipeline=2, data=2, zero=2),
]


def assert_driven(results, num_ranks):
    for result in check(results, num_ranks):
        assert result["loss"] < 1e-11
        assert result["gradient"] < 1e-9
        assert result["parameters"] < 1e-7  # the second update amplifies the rounding of the first
        assert result["steps"] == 2


def assert_inferred(results, num_ranks):
    for result in check(results, num_ranks):
        assert result["error"] < 1e-12
        assert result["statistics"] < 1e-12
        assert result["nothing"]


@pytest.mark.parametrize("name", [x.name for x in DRIVEN])
def test_losses_and_gradients_are_those_of_the_plain_module(two, name):
    assert_driven(two[name], 2)


@pytest.mark.parametrize("name", [x.name for x in INFERRED])
def test_outputs_are_those_of_the_plain_module_in_both_modes(two, name):
    assert_inferred(two[name], 2)


@pytest.mark.parametrize("name", [x.name for x in DROPOUT])
def test_masks_are_those_of_a_step(two, name):
    for result in check(two[name], 2):
        assert result["error"] < 1e-12
        assert result["same"]


@pytest.mark.parametrize("name", [x.name for x in HALF])
def test_half_precision_is_close_to_float32(two, name):
    assert all(error < 0.03 for error in check(two[name], 2))


@pytest.mark.parametrize("name", [x.name for x in OVERFLOWING])
def test_an_fp16_update_with_a_gradient_that_overflows_changes_nothing(two, name):
    for result in check(two[name], 2):
        assert result["gradients"] == [0, result["num_parameters"]]
        assert result["factors"] == [2.0**14, 2.0**14]
        assert result["changed"][0] == 0 < result["changed"][1]
        assert result["steps"] == 2


@pytest.mark.parametrize("zero", [1, 3])
def test_an_update_after_a_forward_pass_without_its_backward_pass_is_seen(two, zero):
    assert all(error < 1e-12 for error in check(two[f"without-backward-zero{zero}"], 2))


@pytest.mark.parametrize("name", ["two-outputs", "two-outputs-pipeline"])
def test_an_output_that_the_loss_does_not_read_keeps_nobody_from_the_others(two, name):
    for result in check(two[name], 2):
        assert result["error"] < 1e-12
        assert "output['features'] is not computed under a plan: the loss does not depend" in result["used"]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("position", "call it as model(**batch)"),
        ("missing", "model(): the batch lacks 'tokens'"),
        (
            "unknown",
            "model(): the batch holds 'token', which the model does not read; did you mean 'tokens'?",
        ),
        ("size", "dim 0 must be a multiple of the plan's micro-batch 2"),
        ("twice", "backward() came a second time to the same outputs of the model"),
    ],
)
def test_misuse_says_what_to_do(two, mistake, message):
    assert_refused(two["misuse"], 2, mistake, message)


def test_a_pipeline_has_no_backward_pass_of_its_own(two):
    for result in check(two["misuse-pipeline"], 2):
        assert "train with step(batch), or call the model under torch.no_grad()" in result["pipeline"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "cases"),
    [(2, LONG_TWO), (4, LONG_FOUR[:12]), (4, LONG_FOUR[12:24]), (4, LONG_FOUR[24:])],
    ids=["models", "mixes-zero01", "mixes-zero23", "others"],
)
def test_other_models_and_mixes_are_the_plain_module(num_ranks, cases):
    found = run_cases(num_ranks, cases, timeout_s=200)
    for each in cases:
        (assert_inferred if each.name.startswith("infer") else assert_driven)(found[each.name], num_ranks)
