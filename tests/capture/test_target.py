"""Targets: what a model file may be, and every mistake that a user can make in one."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.target import load_target, source_from_functions
from autopar.capture.wrapper import wrap_model
from autopar.errors import UsageError
from tests.capture.models import EXAMPLES

GOOD = """
import torch
from torch import nn

def build_model(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1))

def other(depth: int = 2) -> nn.Module:
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth)))

def example_batch(batch_size: int, scale: float = 1.0):
    return {"input": scale * torch.ones(batch_size, 3), "target": torch.zeros(batch_size, 1)}

def loss(output, batch):
    return (output - batch["target"]).square().mean()
"""


def write(folder: Path, text: str, name: str = "model.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def line_of(text: str, piece: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if piece in line)


def test_model_file_and_its_arguments(tmp_path: Path) -> None:
    source = load_target(write(tmp_path, GOOD), {"width": 6, "scale": 2.0})
    assert source.build_model()[0].out_features == 6
    batch = source.example_batch(5)
    assert batch["input"].shape == (5, 3) and batch["input"][0, 0] == 2.0
    assert source.loss is not None
    assert dict(source.args) == {"width": 6, "scale": 2.0}
    assert [b.name for b in capture(source).at(2).blocks] == ["0", "2", "loss"]


def test_factory_in_a_file_replaces_build_model(tmp_path: Path) -> None:
    source = load_target(write(tmp_path, GOOD) + ":other", {"depth": 3})
    assert len(source.build_model()) == 3


def test_factory_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD, "capture_target_module.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(load_target("capture_target_module:other").build_model()) == 2


def test_files_beside_the_model_can_be_imported(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 7", "sizes_beside_the_model.py")
    text = "from sizes_beside_the_model import WIDTH\n" + GOOD.replace("width: int = 4", "width: int = WIDTH")
    assert load_target(write(tmp_path, text)).build_model()[0].out_features == 7


def test_batch_in_another_dim(tmp_path: Path) -> None:
    text = (
        GOOD.replace("torch.ones(batch_size, 3)", "torch.ones(3, batch_size)") + 'batch_dims = {"input": 1}\n'
    )
    text = text.replace("nn.Sequential(nn.Linear", "T(nn.Linear") + (
        "class T(nn.Sequential):\n    def forward(self, input):\n        return super().forward(input.t())\n"
    )
    model = capture(load_target(write(tmp_path, text))).at(4)
    assert model.batch["input"].shape == (3, 4)
    assert model.batch["target"].shape == (4, 1)
    assert model.batch_dims == {"input": 1, "target": 0}


def test_an_entry_that_is_the_same_for_all_samples(tmp_path: Path) -> None:
    text = GOOD.replace("torch.ones(batch_size, 3)", "torch.ones(5, 3)") + 'batch_dims = {"input": None}\n'
    text = text.replace("nn.Sequential(nn.Linear", "T(nn.Linear") + (
        "class T(nn.Sequential):\n"
        "    def forward(self, input):\n"
        "        return super().forward(input).mean()\n"
    )
    model = capture(load_target(write(tmp_path, text))).at(4)
    assert model.batch["input"].shape == (5, 3)
    assert model.batch_dims == {"input": None, "target": 0}


MISTAKES = {
    "no such file": (None, {}, "there is no file '.*model.py'"),
    "no build_model": (
        GOOD.replace("build_model", "build_modle"),
        {},
        "no function 'build_model'; did you mean ",
    ),
    "shows what to add": ("x = 1", {}, r"add for example:\n\n    def build_model"),
    "no example_batch": (
        GOOD.replace("example_batch", "examples"),
        {},
        "(?s)no function 'example_batch'.*return {",
    ),
    "unknown argument": (GOOD, {"widht": 3}, "takes an argument 'widht'; did you mean 'width'?"),
    "syntax error": (GOOD + "def (", {}, "model.py:{def (}: the file raised SyntaxError"),
    "import error": (
        "import no_such_package_anywhere\n",
        {},
        "model.py:1: the file raised ModuleNotFoundError",
    ),
    "build_model raises": (
        GOOD.replace(
            "    return nn.Sequential(nn.", "    raise ValueError('width must be even')\n    return (nn.", 1
        ),
        {},
        "model.py:{raise ValueError}: build_model.* raised ValueError: width must be even",
    ),
    "not a module": (
        GOOD.replace("return nn.Sequential(nn.Linear(3, width)", "return (1"),
        {},
        "not a torch.nn.Mod",
    ),
    "batch is no dict": (
        GOOD.replace("return {", "return [1] or {"),
        {},
        "must return a dict of tensors, not list",
    ),
    "batch of numbers": (
        GOOD.replace("torch.zeros(batch_size, 1)", "1.0"),
        {},
        r"\['target'\] is a float, not a tensor; make it a tensor, with batch_dims None",
    ),
    "batch of parts": (
        GOOD.replace("torch.zeros(batch_size, 1)", "(torch.zeros(batch_size, 1),)"),
        {},
        r"\['target'\] is a tuple, not a tensor; give its tensors as entries of their own",
    ),
    "batch of nothing": (
        GOOD.replace("torch.zeros(batch_size, 1)", "None"),
        {},
        r"\['target'\] is a NoneType, not a tensor; leave it out: what is no tensor is an argument of bui",
    ),
    "batch without entries": (
        GOOD.replace("return {", "return {} and {"),
        {},
        "must return a dict of tensors, not an empty dict",
    ),
    "entry by no name": (
        GOOD.replace('"target": torch', '"target.x": torch'),
        {},
        "names an entry 'target.x', by which forward.. cannot take it; use a name of letters, digits and",
    ),
    "batch not in dim 0": (
        GOOD.replace("torch.zeros(batch_size, 1)", "torch.zeros(1, batch_size)"),
        {},
        r"\['target'\] has shape \(1, 7\), whose dim 0 is not the batch size; .* batch_dims = ",
    ),
    "no entry counts samples": (
        GOOD + 'batch_dims = {"input": None, "target": None}',
        {},
        "of every entry of example_batch.. that it is the same for all samples",
    ),
    "batch_dims misspelt": (
        GOOD + 'batch_dims = {"targte": 0}',
        {},
        "names 'targte', .* did you mean 'target'",
    ),
    "loss is no scalar": (
        GOOD.replace(".square().mean()", ".square()"),
        {},
        r"loss\(\) returned a tensor of shape \(batch, 1\)",
    ),
    "loss is cut off": (
        GOOD.replace(".square().mean()", ".detach().square().mean()"),
        {},
        r"the loss depends on no parameter that requires a gradient, .* leave out what cuts it off in forw",
    ),
    "loss is counted": (
        GOOD.replace(".square().mean()", ".gt(0).sum()"),
        {},
        "the loss is torch.int64, of which there is no gradient; return a real floating-point number",
    ),
    "loss is complex": (
        GOOD.replace(".square().mean()", ".mean() * 1j"),
        {},
        "the loss is torch.complex64, of which there is no gradient",
    ),
    "no loss": (
        GOOD.replace("def loss", "def lost"),
        {},
        r"(?s)there is no loss\(\) function.*def loss\(output, b",
    ),
    "forward wants more": (
        GOOD.replace('"input": scale', '"inputs": scale'),
        {},
        r"forward\(\) needs 'input', which example_batch\(\) does not give; did you mean 'inputs'\?",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_model_file(mistake: str, tmp_path: Path) -> None:
    text, args, message = MISTAKES[mistake]
    target = write(tmp_path, text) if text is not None else str(tmp_path / "model.py")
    marker = re.search(r"\{(.+?)\}: ", message)
    if marker:
        message = message.replace(marker[0], f"{line_of(text or '', marker[1])}: ")
    with pytest.raises(UsageError, match=message):
        capture(load_target(target, args))


def test_not_a_target() -> None:
    with pytest.raises(UsageError, match=r"'no_such_model' is not a model; give path\.py"):
        load_target("no_such_model")
    with pytest.raises(UsageError, match="there is no module 'no_such_package_xyz'"):
        load_target("no_such_package_xyz:build")
    with pytest.raises(UsageError, match=r"did you mean 'gpt\.py'"):
        load_target(str(EXAMPLES / "gtp.py"))


def test_module_is_given_the_entries_that_its_forward_names() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return (x * scale).sum()

    class Any(nn.Module):
        def forward(self, **entries: Tensor) -> dict[str, Tensor]:
            return {"loss": sum(entries.values()).sum()}

    x, y = torch.ones(2), torch.full((2,), 3.0)
    assert wrap_model(Named(), None, ("x", "y"))(x=x, y=y) == 4.0
    assert wrap_model(Any(), None, ("x", "y"))(x, y) == 8.0


def test_functions_as_a_source() -> None:
    source = source_from_functions(
        lambda: nn.Linear(2, 1),
        lambda n: {"input": torch.ones(n, 2)},
        loss=lambda output, batch: output.mean(),
    )
    assert capture(source).at(1).parameters.keys() == {"weight", "bias"}


def hf(folder: Path, **fields: object) -> str:
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


@pytest.mark.parametrize(
    ("fields", "args", "message"),
    [
        ({"model_type": "gpt2"}, {"n_lyer": 2}, "GPT2Config has no field 'n_lyer'; did you mean 'n_layer'"),
        ({"model_type": "gtp2"}, {}, "transformers knows no model_type 'gtp2'; did you mean 'gpt2'"),
        ({"n_layer": 2}, {}, "not a Hugging Face model config: it has no 'model_type'"),
        ({"model_type": "gpt2"}, {"seq": 4096}, "seq=4096 is longer than the model's 1024 positions"),
        ({"model_type": "gpt2"}, {"seq": 0}, "seq=0 is not a positive whole number"),
        ({"model_type": "gpt2"}, {"dropout": 1.5}, "dropout=1.5 is not a probability"),
        ({"model_type": "gpt2"}, {"image_size": 32}, "takes no images"),
        ({"model_type": "vit"}, {"seq": 32}, "reads images, so it takes no seq"),
        ({"model_type": "resnet"}, {"depths": "3"}, "depths=3 is not a list; write it like"),
        (
            {"model_type": "esm", "architectures": ["EsmForMaskedLM"]},
            {},
            "EsmForMaskedLM reads texts, but its config has no vocab_size",
        ),
        ({"model_type": "wav2vec2"}, {}, "knows no training head for model_type 'wav2vec2'"),
    ],
)
def test_mistakes_with_a_config(
    fields: dict[str, object], args: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(message).replace(r"\ ", " ")):
        load_target(hf(tmp_path, **fields), args)


def test_texts_of_a_model_without_a_limit_of_positions(tmp_path: Path) -> None:
    """XLNet's config says -1."""
    source = load_target(hf(tmp_path, model_type="xlnet", vocab_size=64), {"seq": 2000})
    assert source.example_batch(2)["input_ids"].shape == (2, 2000)


def test_texts_of_a_model_of_images_and_texts(tmp_path: Path) -> None:
    folder = hf(tmp_path, model_type="gemma3", text_config={"vocab_size": 64, "max_position_embeddings": 16})
    tokens = load_target(folder).example_batch(2)["input_ids"]
    assert tokens.shape == (2, 16)
    assert tokens.max() < 64
    with pytest.raises(UsageError, match="seq=32 is longer than the model's 16 positions"):
        load_target(folder, {"seq": 32})


def test_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{\n"model_type": gpt2}')
    with pytest.raises(UsageError, match=r"config\.json:2: not valid JSON"):
        load_target(str(tmp_path))
    with pytest.raises(UsageError, match="there is no file"):
        load_target(str(tmp_path / "missing.json"))


@pytest.mark.parametrize(
    ("model_type", "architectures", "expected"),
    [
        ("gpt2", None, "GPT2LMHeadModel"),
        ("llama", ["LlamaModel"], "LlamaForCausalLM"),
        ("bert", None, "BertForMaskedLM"),
        ("bert", ["BertForSequenceClassification"], "BertForSequenceClassification"),
        ("t5", None, "T5ForConditionalGeneration"),
        ("vit", ["ViTModel"], "ViTForImageClassification"),
    ],
)
def test_head_of_a_config(
    model_type: str, architectures: list[str] | None, expected: str, tmp_path: Path
) -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 32}
    if model_type == "vit":
        small.pop("vocab_size")
    source = load_target(hf(tmp_path, model_type=model_type, architectures=architectures), small)
    assert type(source.build_model()).__name__ == expected
    assert all(value.shape[0] == 2 for value in source.example_batch(2).values())
