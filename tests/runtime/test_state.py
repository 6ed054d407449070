"""Weights into a parallel model from every kind of file, and out of it again, bit for bit."""

import pytest
import torch

import autopar
from autopar.errors import UsageError
from autopar.runtime.safetensors_file import read_places, write_tensors
from tests.runtime.expect import assert_refused
from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, check, load, run_cases

TENSOR = {"tensor": 2, "lines": GPT_TENSOR}
FORMS = (
    *("mapping", "sharded", "dcp", "checkpoint"),
    *("file", "wrapped", "safetensors", "exported.pt", "exported.safetensors"),
)
OTHERS = {"pipeline": {"pipeline": 2}, "zero3": {"data": 2, "zero": 3}}


def case(name, body, **keywords):
    return Case(name, f"state_bodies:{body}", **keywords)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def sources(folder, forms, **options):
    folder.mkdir(exist_ok=True)
    extra = {"folder": str(folder), "forms": forms}
    return case(folder.name, "sources", dtype="float32", extra=extra, **options)


@pytest.fixture(scope="module")
def found(folder):
    refused = case("refused", "refused", options=OTHERS["pipeline"])
    return run_cases(2, [sources(folder / "tensor", FORMS[:4], options=TENSOR), refused])


def assert_same_weights(results, forms):
    for result in check(results, 2):
        assert sorted(result["differing"]) == sorted(forms)
        assert not any(result["differing"].values()), result["differing"]
        assert result["names"] and not result["wrong"]


def test_every_rank_starts_from_the_weights_and_exports_them(found):
    assert_same_weights(found["tensor"], FORMS[:4])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tied_gpt", "perception"])
def test_weights_arrive_under_every_plan_from_every_form(tmp_path, model):
    cases = [
        sources(tmp_path / name, FORMS, model=model, options=options) for name, options in OTHERS.items()
    ]
    for results in run_cases(2, cases).values():
        assert_same_weights(results, FORMS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "renamed",
            "the state dict given as init has no 'blocks.1.ln_1.weight'; did you mean 'block.1.ln_1.weigh",
        ),
        (
            "shape",
            "'blocks.1.qkv.weight' has shape (47, 16) in the state dict given as init and (48, 16) in the",
        ),
        ("surplus", "holds 'blocks.9.qkv.weight', which the model does not have; did you mean 'blocks."),
        ("nested", "holds 'model', a dict and no tensor; give the model's state_dict() alone"),
        ("nowhere", "init='/nowhere/weights.pt' is not known: it is no file or folder"),
    ],
)
def test_weights_of_another_model_are_refused(found, kind, message):
    assert_refused(found["refused"], 2, kind, message)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_checkpoint_is_exported_without_ranks(found, folder, tmp_path, name):
    check(found["tensor"], 2)
    autopar.export_checkpoint(folder / "tensor" / "checkpoint", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    expected = torch.load(folder / "tensor" / "exported.pt", weights_only=True)
    if name.endswith(".pt"):
        state = torch.load(tmp_path / name, weights_only=True)
        plain = load("tied_gpt", ()).build_model().double()
        plain.load_state_dict(state)
        assert state["head.weight"].data_ptr() == state["wte.weight"].data_ptr()
    else:
        state = {key: place.read() for key, place in read_places(tmp_path / name).items()}
        assert set(expected) - set(state) == {"head.weight"}
        plain = load("tied_gpt", ()).build_model().double()
        plain.load_state_dict(state, strict=False)  # as export() says
        assert torch.equal(plain.state_dict()["head.weight"], expected["head.weight"])
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


def test_what_is_no_checkpoint_is_not_exported(tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint in"):
        autopar.export_checkpoint(tmp_path, tmp_path / "weights.pt")


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def test_safetensors_come_back_as_they_were(tmp_path):
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype}-{index}": torch.randint(0, 2, shape, generator=draw).to(dtype)
        for dtype in DTYPES
        for index, shape in enumerate(((3, 5), (), (0, 4), (1,)))
    }
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {key: (tuple(x.shape), x.dtype) for key, x in tensors.items()}, tensors.items())
    found = {key: place.read() for key, place in read_places(path).items()}
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(value, found[key]) and value.dtype == found[key].dtype for key, value in tensors.items()
    )


def test_the_reference_implementation_reads_and_writes_the_same(tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    tensors = {"a.weight": torch.randn(7, 3), "b": torch.arange(5), "half": torch.randn(3).bfloat16()}
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    torch_files.save_file(tensors, theirs)
    write_tensors(ours, {key: (tuple(x.shape), x.dtype) for key, x in tensors.items()}, tensors.items())
    read = {key: place.read() for key, place in read_places(theirs).items()}
    assert all(torch.equal(value, read[key]) for key, value in tensors.items())
    assert all(torch.equal(value, tensors[key]) for key, value in torch_files.load_file(ours).items())


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_a_file_cut_short_is_refused(tmp_path, length):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {"a": ((8,), torch.float32)}, [("a", torch.ones(8))])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UsageError, match=r"cut short|no safetensors file"):
        read_places(path)
