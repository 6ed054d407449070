"""What targets are told, held against their own parsers where they have one; what they cannot is listed."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from autopar.cli.export import NAMES
from autopar.cli.main import main
from autopar.export.accelerate import to_accelerate
from autopar.export.hf_tp_plan import to_hf_tp_plan
from autopar.export.megatron import to_megatron
from autopar.export.pytorch_script import to_pytorch
from autopar.export.subject import ExportedEntry, Subject
from autopar.export.targets import TARGETS
from autopar.export.torchtitan import to_torchtitan
from tests.export.subjects import ANYWHERE, GPT_PLAN, LLAMA_PLAN, subject

ZBV = (
    "pipeline.schedule=zbv; pipeline.virtual=2; "
    "pipeline.stages=[[wte, wpe], [blocks.0], [blocks.1], [blocks.2, blocks.3, ln_f, lm_head, loss]]"
)
UNEVEN = "pipeline.stages=[[wte, wpe, blocks.0], [blocks.1-3, ln_f, lm_head, loss]]"


def flags(*changes: str) -> list[str]:
    text = to_megatron(subject(*changes)).text
    return [line for line in text.splitlines() if not line.startswith("#")]


def left_out(target: str, *changes: str, text: str = GPT_PLAN) -> str:
    exported = TARGETS[target](subject(*changes, text=text))
    if target != "hf-tp-plan":  # JSON takes no comments
        assert all(f"- {line}" in exported.text for line in exported.left_out)
    return "\n".join(exported.left_out)


def test_the_command_knows_every_target() -> None:
    assert set(NAMES) == set(TARGETS)


def test_megatron_flags() -> None:
    assert flags() == [
        "--tensor-model-parallel-size 2",
        "--pipeline-model-parallel-size 2",
        "--micro-batch-size 2",
        "--global-batch-size 16",
        "--bf16",
        "--optimizer adam",
        "--sequence-parallel",
        "--use-distributed-optimizer",
        "--overlap-grad-reduce",
        "--overlap-param-gather",
    ]
    assert left_out("megatron") == ""


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (UNEVEN, "--pipeline-model-parallel-layout Et|tttL"),
        ("mesh.order=[data, pipeline, tensor]", "--use-tp-pp-dp-mapping"),
        ("recompute=full", "--recompute-granularity full"),
        ("recompute={blocks.0: full, blocks.2: full, '*': none}", "--recompute-method block"),
        ("recompute={blocks.0: full, blocks.2: full, '*': none}", "--recompute-num-layers 1"),
        ("zero=3", "--data-parallel-sharding-strategy optim_grads_params"),
        ("shard_group=1", "--num-distributed-optimizer-instances 2"),
        ("offload=optimizer", "--optimizer-cpu-offload"),
        ("precision=fp16", "--fp16"),
    ],
)
def test_megatron_flag_of_a_decision(change: str, flag: str) -> None:
    assert flag not in flags()
    assert flag in flags(change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("pipeline.schedule=zero-bubble", "pipeline.schedule: zero-bubble: Megatron-LM runs 1f1b"),
        ("mesh.order=[tensor, pipeline, data]", "mesh.order"),
        (f"{ZBV}; mesh.order=[tensor, pipeline, data]", "mesh.order: ['tensor', 'pipeline', 'data']"),
        (ZBV, "4 of them on 2 ranks need the schedule; 2 are written, as even as layers allow"),
        ("recompute={blocks.1: full, '*': none}", "recompute: it differs between layers"),
        ("zero=[1, 3]", "zero: [1, 3]: one level for all stages; 3 is written"),
        ("offload=activations", "offload: activations"),
        ("compile=true", "compile: true"),
        ("pipeline.stages=[[wte], [wpe, blocks.0-3, ln_f, lm_head, loss]]", "pipeline.stages: wpe"),
        ("tensor.blocks.*.mlp.fc=replicate", "tensor: blocks.0.mlp.fc.weight and 3 more: whole here"),
        ("tensor.blocks.3.mlp.fc=replicate", "tensor: blocks.3.mlp.fc.weight: whole here"),
        (
            "tensor.lm_head=replicate; activations.lm_head=replicate",
            "tensor: lm_head.weight: Megatron-LM splits embedding and head by the vocabulary, always",
        ),
    ],
)
def test_megatron_says_what_it_leaves_out(change: str, said: str) -> None:
    assert said in left_out("megatron", *change.split("; "))


def test_megatron_gets_an_even_cut_where_the_schedule_is_lost() -> None:
    assert not any("layout" in flag for flag in flags(*ZBV.split("; ")))
    assert to_megatron(three_layers()).text.endswith(
        "--pipeline-model-parallel-layout Et|ttL\n--use-distributed-optimizer\n--overlap-grad-reduce\n"
        "--overlap-param-gather\n"
    )


def three_layers() -> Subject:
    """Without the sequence axis, in four stages."""
    text = GPT_PLAN.replace("n_layer: 4", "n_layer: 3").replace("blocks.2-3", "blocks.2")
    changes = (*ZBV.split("; ")[:2], "activations=replicate", "mesh.tensor=1", "mesh.data=4")
    return subject(*changes, ZBV.split("; ")[2].replace(", blocks.3", ""), text=text)


def test_torchtitan_sections() -> None:
    document = tomllib.loads(to_torchtitan(subject("recompute=selective")).text)
    assert document["training"] == {
        "local_batch_size": 8,
        "global_batch_size": 16,
        "mixed_precision_param": "bfloat16",
        "enable_cpu_offload": False,
    }
    assert document["parallelism"] == {
        "data_parallel_replicate_degree": 1,
        "data_parallel_shard_degree": 2,
        "fsdp_reshard_after_forward": "never",
        "tensor_parallel_degree": 2,
        "pipeline_parallel_degree": 2,
        "pipeline_parallel_schedule": "1F1B",
        "pipeline_parallel_microbatch_size": 2,
        "module_fqns_per_model_part": [
            ["wte", "wpe", "blocks.0", "blocks.1"],
            ["blocks.2", "blocks.3", "ln_f", "lm_head"],
        ],
    }
    assert document["activation_checkpoint"] == {"mode": "selective", "selective_ac_option": "op"}
    assert "tensor, activations, operators" in left_out("torchtitan")
    assert "precision: fp16" in left_out("torchtitan", "precision=fp16")
    assert "modules have this model's names" in left_out("torchtitan")
    assert "means InterleavedZeroBubble for several" in left_out(
        "torchtitan", "pipeline.schedule=zero-bubble"
    )


def test_torchtitan_gets_its_own_names_of_a_llama() -> None:
    stages = "[model.embed_tokens, model.layers.0], [model.layers.1, model.norm, lm_head, loss]"
    made = subject("mesh.pipeline=2", f"pipeline.stages=[{stages}]", text=LLAMA_PLAN)
    parts = tomllib.loads(to_torchtitan(made).text)["parallelism"]["module_fqns_per_model_part"]
    assert parts == [["tok_embeddings", "layers.0"], ["layers.1", "norm", "output"]]
    assert "names" not in "".join(to_torchtitan(made).left_out)


def test_parameters_that_stages_share_are_told() -> None:
    tied = GPT_PLAN.replace("tied: false", "tied: true").replace("lm_head: column", "# ")
    tied = tied.replace("lm_head: shard(2), ", "").replace("wte: vocab", "wte: replicate")
    assert "model: wte.weight: several stages read it" in left_out("pytorch", text=tied)
    assert "model: wte.weight: several stages read it" in left_out("torchtitan", text=tied)
    assert "several stages" not in left_out("pytorch")


def test_torchtitan_reads_the_sections() -> None:
    titan = pytest.importorskip("torchtitan.config.job_config", reason="torchtitan 0.2 is not installed")
    document = tomllib.loads(to_torchtitan(subject("zero=3", "recompute=full")).text)
    parts = {
        "training": titan.Training,
        "parallelism": titan.Parallelism,
        "activation_checkpoint": titan.ActivationCheckpoint,
        "compile": titan.Compile,
    }
    for section, entries in document.items():
        parts[section](**entries)


def test_hf_tp_plan_is_the_one_that_transformers_has_itself() -> None:
    from transformers import AutoConfig
    from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

    made = subject(text=LLAMA_PLAN)
    plan = json.loads(to_hf_tp_plan(made).text)
    assert made.plan.model is not None
    own = AutoConfig.from_pretrained(made.plan.model.source).base_model_tp_plan
    assert plan == {f"model.{pattern}": style for pattern, style in own.items()}
    assert set(plan.values()) <= set(ALL_PARALLEL_STYLES)
    with_ends = json.loads(
        to_hf_tp_plan(subject("tensor.lm_head=column", "activations.lm_head=shard(2)", text=LLAMA_PLAN)).text
    )
    assert with_ends["lm_head"] == "colwise_gather_output"


def test_hf_tp_plan_says_what_it_leaves_out() -> None:
    said = left_out("hf-tp-plan")
    assert "mesh.pipeline: 2" in said and "mesh.data: 2" in said and "activations: sequence" in said
    assert json.loads(to_hf_tp_plan(subject()).text)["blocks.*.attn.qkv"] == "packed_colwise"
    assert "its layers differ" in left_out("hf-tp-plan", "tensor.blocks.0.mlp.fc=replicate")
    assert "model: it is none of transformers'" in said
    whole = ["tensor={'*': replicate}", "activations=replicate"]
    assert "mesh.tensor: 2: no module gets a style" in left_out("hf-tp-plan", *whole)


def test_accelerate_reads_its_file(tmp_path: Path) -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    file = tmp_path / "accelerate.yaml"
    file.write_text(to_accelerate(subject("zero=3", "recompute=full", "compile=true")).text)
    config = config_args.load_config_from_file(str(file))
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (4, 1, "bf16")
    assert config.fsdp_config["fsdp_reshard_after_forward"] is True
    assert config.fsdp_config["fsdp_activation_checkpointing"] is True
    assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "Block"
    assert config.parallelism_config["parallelism_config_tp_size"] == 2
    assert config.parallelism_config["parallelism_config_dp_shard_size"] == 2
    assert config.dynamo_config == {"dynamo_backend": "INDUCTOR"}


def test_accelerate_without_sharding_is_plain_data_parallelism() -> None:
    changes = ("mesh.pipeline=1", "mesh.data=8", "mesh.tensor=1", "zero=0")
    stages = "pipeline.stages=[[wte, wpe, blocks.0-3, ln_f, lm_head, loss]]"
    document = yaml.safe_load(to_accelerate(subject(*changes, stages)).text)
    assert document["distributed_type"] == "MULTI_GPU" and document["num_processes"] == 8
    assert "fsdp_config" not in document
    assert "mesh.pipeline: 2" in left_out("accelerate")


def test_accelerate_has_no_machines_without_processes() -> None:
    two_nodes = GPT_PLAN.replace("nodes: 1, devices_per_node: 8", "nodes: 2, devices_per_node: 4")
    document = yaml.safe_load(to_accelerate(subject(text=two_nodes)).text)
    assert (document["num_processes"], document["num_machines"]) == (4, 1)


def test_pytorch_script_is_python_and_says_what_it_leaves_out() -> None:
    for changes in (
        (),
        ("zero=0", UNEVEN),
        ("recompute=full", "precision=fp32"),
        ("zero=3", "shard_group=1"),
    ):
        exported = to_pytorch(subject(*changes))
        compile(exported.text, "script.py", "exec")
    assert "mesh.tensor: 2: pipelining traces whole sizes" in left_out("pytorch")
    assert "pipeline.schedule: zero-bubble" in left_out("pytorch", "pipeline.schedule=zero-bubble")
    assert "gloo, on CPUs, refuses" in left_out("pytorch", *ZBV.split("; "))
    assert "ColwiseParallel()" in to_pytorch(subject(text=LLAMA_PLAN)).text


def test_pytorch_script_makes_what_the_model_of_transformers_reads() -> None:
    llama = subject(text=LLAMA_PLAN)
    tokens = to_pytorch(llama).text
    assert "transformers.LlamaForCausalLM(config)" in tokens
    assert '"labels": torch.randint(config.vocab_size, (2 * num_micro_batches, 16,), device=device)' in tokens
    assert "hidden_size=32" in tokens and "seq=" not in tokens  # seq is autopar's word
    images = (ExportedEntry("pixel_values", (3, 8, 8), 0, 0), ExportedEntry("labels", (), 0, 1))
    script = to_pytorch(replace(llama, batch=images)).text
    assert '"pixel_values": torch.randn((2 * num_micro_batches, 3, 8, 8,), device=device)' in script
    assert '"labels": torch.randint(config.num_labels, (2 * num_micro_batches,), device=device)' in script


def test_pytorch_script_counts_samples_where_the_model_does() -> None:
    entries = (ExportedEntry("x", (16,), 1, 0), ExportedEntry("target", (), 0, None))
    exported = to_pytorch(replace(subject(), batch=entries))
    assert "value.chunk(num_micro_batches, {'x': 1}.get(name, 0))" in exported.text
    assert any("samples along the first dim alone" in line for line in exported.left_out)


def test_pytorch_script_does_not_hand_an_argument_to_another() -> None:
    entries = (ExportedEntry("x", (16,), 0, 0), ExportedEntry("third", (), 0, 2))
    exported = to_pytorch(replace(subject(), batch=entries))
    assert any("arguments by their order" in line for line in exported.left_out)
    assert "build_stage" not in exported.text


def test_pytorch_script_of_a_pipeline_hands_over_what_was_traced() -> None:
    for level in (0, 2):
        assert "bfloat16" not in to_pytorch(subject(f"zero={level}")).text
        assert "precision: bf16: stages hand over float32" in left_out("pytorch", f"zero={level}")


def test_pytorch_script_gives_inputs_to_the_first_stage_alone() -> None:
    entries = (ExportedEntry("x", (16,), 0, 0), ExportedEntry("mask", (16,), 0, 1, is_read_late=True))
    exported = to_pytorch(replace(subject(), batch=entries))
    assert any("a later stage reads mask" in line for line in exported.left_out)
    assert "build_stage" not in exported.text
    assert not any(entry.is_read_late for entry in subject().batch)  # of the labels, the loss alone


def test_pytorch_script_averages_gradients_whoever_holds_the_model() -> None:
    def script(*changes: str, settings: dict[str, object] | None = None) -> str:
        return to_pytorch(replace(subject(*changes, text=ANYWHERE), settings=settings)).text

    one_stage = ("mesh.pipeline=1", "pipeline.stages=[[wte, wpe, blocks.0-3, ln_f, lm_head, loss]]")
    by_hand, wrapped = "torch.distributed.all_reduce(grad", "parts = [DistributedDataParallel("
    assert by_hand in script("zero=0")  # stages that were traced
    assert by_hand in script("zero=0", *one_stage)  # shards of the tensor axis
    assert wrapped in script("zero=0", *one_stage, "mesh.tensor=1")
    uncut = script("zero=0", "mesh.tensor=1", settings={})  # pipelining cuts no model of transformers
    assert wrapped in uncut and "build_stage" not in uncut
    for changes in ((), one_stage):
        text = script("zero=2", *changes)
        assert by_hand not in text and wrapped not in text and "fully_shard(part" in text


def test_pytorch_script_imports_the_module_that_the_plan_names() -> None:
    whole = subject()
    assert whole.plan.model is not None
    model = replace(whole.plan.model, source="package.models:small")
    text = to_pytorch(replace(whole, plan=replace(whole.plan, model=model))).text
    assert "model_file = importlib.import_module('package.models')" in text
    assert "model_file.small(**accepted(model_file.small))" in text


def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "flags.txt"
    plan.write_text(GPT_PLAN)
    assert main(["export", str(plan), "--to", "megatron", "-o", str(out)]) == 0
    assert "--tensor-model-parallel-size 2" in out.read_text() and str(plan) in out.read_text()
    capsys.readouterr()
    assert (
        main(["export", str(plan), "--to", "megatron", "--set", "mesh.order=[tensor, data, pipeline]"]) == 0
    )
    printed = capsys.readouterr()
    assert "left out: mesh.order" in printed.err and "--micro-batch-size 2" in printed.out
    assert main(["export", str(plan), "--to", "accelerate", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["target"] == "accelerate" and document["left_out"] and "fsdp_version" in document["text"]


def test_export_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(GPT_PLAN)
    assert main(["export", str(plan), "--to", "deepspeed"]) == 2
    assert main(["export", str(plan)]) == 2
    plan.write_text(GPT_PLAN.replace("zero: 1\n", ""))
    assert main(["export", str(plan), "--to", "megatron"]) == 4
    assert "leaves zero to the solver" in capsys.readouterr().err
