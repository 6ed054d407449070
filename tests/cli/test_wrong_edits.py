"""A plan file edited wrongly: exit status 4, the line that is wrong, and what to do about it."""

import re
from pathlib import Path

import pytest

from autopar.cli.main import main

# What is edited (a substring or several), into what, a piece of the line that must be named, the message.
WRONG: dict[str, tuple[dict[str, str], str, str]] = {
    "block misspelt": (
        {"ln_f, lm_head": "ln_g, lm_head"},
        "ln_g",
        r"stage 1 names 'ln_g', which is not a block of the model; did you mean 'ln_f'\?",
    ),
    "block missing": ({", ln_f": ""}, "stages:", r"no stage holds ln_f; every block"),
    "block doubled": (
        {"blocks.2-3": "blocks.1-3"},
        "blocks.1-3",
        r"stage 1 names block 'blocks.1' again; it is already in stage 0; every block runs once: delete one",
    ),
    "blocks out of order": (
        {"wte, wpe": "wpe, wte"},
        "wpe, wte",
        r"stage 0 names 'wte' after 'wpe', but the model runs it before; keep the order",
    ),
    "range beyond the model": (
        {"blocks.2-3": "blocks.2-9"},
        "blocks.2-9",
        r"stage 1 names 'blocks.4-9', which are no blocks of the model; its blocks are wte, wpe, blocks.0-3",
    ),
    "range backwards": (
        {"blocks.2-3": "blocks.3-2"},
        "blocks.3-2",
        r"'blocks.3-2' runs backwards; write the sm",
    ),
    "stage too many": (
        {"    - [blocks.2-3, ": "    - [blocks.2-3]\n    - ["},
        "stages:",
        r"there are 3 stages, but mesh.pipeline 2 asks for 2; move the blocks into that many lists",
    ),
    "unknown key": (
        {"precision: fp32": "precison: fp32"},
        "precison",
        r"'precison' is not a key of a plan; did you mean 'precision'\? \(known: version, model",
    ),
    "key in the wrong section": (
        {"micro: 4": "mikro: 4"},
        "mikro",
        r"'mikro' is not a key in 'batch'; did you mean",
    ),
    "tensor word wrong": (
        {"attn.qkv: column": "attn.qkv: colum"},
        "qkv: colum",
        r"'tensor.blocks.\*.attn.qkv' is 'colum'; did you mean 'column'\? \(allowed: column, row, vocab, rep",
    ),
    "module misspelt": (
        {"attn.qkv: column": "attn.qvk: column"},
        "qvk",
        r"'tensor' names 'blocks.\*.attn.qvk', which is no parameter.*did you mean 'blocks.\*.attn.qkv'",
    ),
    "size without a unit": (
        {"devices_per_node: 4}": "devices_per_node: 4, memory_limit: 2}"},
        "memory_limit",
        r"'cluster.memory_limit' is 2; write a size with its unit, e.g. 70GiB or 75GB",
    ),
    "colon forgotten": (
        {"precision: fp32": "precision fp32"},
        "precision fp32",
        r"not valid YAML: could not find expected ':'; write 'key: value', with a blank after the colon",
    ),
    "star without quotes": (
        {'  "*": replicate': "  *: replicate"},
        "*: replicate",
        r'not valid YAML: .*; a name that begins with \* stands in quotes: "\*"',
    ),
    "degrees do not multiply": (
        {"tensor: 2}": "tensor: 4}"},
        "tensor: 4}",
        r"the mesh pipeline 2 x data 1 x tensor 4 is 8 devices, but the cluster has 4; change a degree",
    ),
    "micro does not divide": (
        {"micro: 4": "micro: 3"},
        "micro: 3",
        r"batch.micro 3 x mesh.data 1 = 3 does not divide batch.global 16; .*change one, e.g. global: 15",
    ),
    "another model": (
        {"n_layer: 4": "n_layer: 5"},
        "fingerprint",
        r"the plan is for the model [0-9a-f]+, this one is [0-9a-f]+; use the model and the argu",
    ),
    "wrong type": (
        {"data: 1": "data: one"},
        "data: one",
        r"'mesh.data' is the text 'one'; write a whole number of",
    ),
    "heads not divisible": (
        {"n_embd: 64": "n_embd: 96", "n_head: 4": "n_head: 3", "  fingerprint": "  # fingerprint"},
        "attn.qkv: column",
        r"shards blocks.0.attn.qkv.weight by heads, and its 3 heads do not divide by tensor 2; legal degrees",
    ),
    "zero out of range": (
        {"\nzero: ": "\nzero: 4 #"},
        "zero:",
        r"'zero' is 4; write a whole number from 0 to 3",
    ),
    "duplicate key": (
        {"\nprecision: fp32": "\nprecision: fp32\nprecision: bf16"},
        "precision: bf16",
        r"'precision' is said twice \(first at line \d+\); delete one",
    ),
    "recompute of no block": (
        {"blocks.0-1: full": "block.0-1: full"},
        "block.0-1",
        r"'recompute' names 'block.0-1', which is no block of the model",
    ),
    "recompute word wrong": (
        {"-1: full": "-1: fully"},
        "fully",
        r"'recompute.*' is 'fully'; did you mean 'full'\?",
    ),
    "schedule of other virtual stages": (
        {"schedule: 1f1b": "schedule: zbv"},
        "virtual: 1",
        r"schedule zbv runs two stages on each rank, .* virtual is 1; write virtual: 2",
    ),
    "virtual stages without their lists": (
        {"schedule: 1f1b": "schedule: interleaved", "virtual: 1": "virtual: 2"},
        "stages:",
        r"there are 2 stages, but mesh.pipeline 2 x virtual 2 asks for 4; move the blocks into that many",
    ),
    "order of an axis that is none": (
        {"tensor: 2}": "tensor: 2, order: [pipeline, data, tensors]}"},
        "order:",
        r"'mesh.order.2' is 'tensors'; did you mean 'tensor'\?",
    ),
    "shard group does not divide": (
        {"\nzero: ": "\nshard_group: 3\nzero: "},
        "shard_group: 3",
        r"shard_group 3 does not divide mesh.data 1; .* write shard_group: 1",
    ),
    "offload without shards": (
        {"offload: none": "offload: [parameters]"},
        "offload:",
        r"offload of parameters needs zero: 3, but zero is \d; .*: write zero: 3, or offload: optimizer",
    ),
    "cluster file gone": (
        {"devices_per_node: 4}": "devices_per_node: 4, file: away.yaml}"},
        "away.yaml",
        r"the cluster file 'away.yaml', which is not here; give it with --cluster FILE, or",
    ),
    "device unknown": (
        {"device: cpu": "device: cpux"},
        "device: cpux",
        r"unknown device 'cpux'; did you mean 'cpu'\?",
    ),
    "model gone": (
        {"gpt.py": "gtp.py"},
        "source:",
        r"the model '.*gtp.py' is neither here .* nor beside the plan; change to the folder",
    ),
    "line deleted": (
        {"\nrecompute:": "\n# recompute:"},
        "",
        r"the plan leaves recompute to the solver; complete it with `autopar plan .*gpt.py --with .*gpt.yaml",
    ),
    "anchor": (
        {"zero: ": "zero: &level "},
        "zero:",
        r"anchors \(&name\) are not read here; write the value out",
    ),
    "bracket left open": ({"mesh: {": "mesh: {{"}, "", r"(not valid YAML|a key is a)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_edit_is_status_4_at_its_line(
    case: str, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits, marker, message = WRONG[case]
    text = plan_file.read_text()
    for old, new in edits.items():
        assert old in text, f"{old!r} is not in the plan:\n{text}"
        text = text.replace(old, new, 1)
    plan_file.write_text(text)
    status = main(["check", str(plan_file)])
    out, err = capsys.readouterr()
    assert (status, out) == (4, ""), err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1 or (case == "bracket left open" and len(err.splitlines()) == 2)
    found = re.match(rf"autopar: {re.escape(str(plan_file))}:(?P<line>\d+):(?P<column>\d+): ", err)
    assert re.search(message, err), err
    if marker:
        assert found, err
        assert marker in text.splitlines()[int(found["line"]) - 1], err


def test_a_file_cut_off_anywhere_is_an_error_or_another_plan(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from autopar.errors import PlanError
    from autopar.plan.read import parse_plan

    text = plan_file.read_text()
    for length in range(0, len(text), 7):
        try:
            parse_plan(text[:length], "cut.yaml")
        except PlanError as problem:
            assert all(str(e).startswith("cut.yaml:") and "\n" not in str(e) for e in problem.problems)
    plan_file.write_bytes(text.encode()[: len(text) // 2] + b"\xff")
    assert main(["check", str(plan_file)]) == 4
    assert re.search(r"gpt.yaml:\d+:\d+: byte 0xff is not UTF-8", capsys.readouterr().err)
