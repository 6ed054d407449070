"""Little memory, where most ways of running a model do not fit: no pins lead to a better plan."""

import pytest

from tests.planner.hunt_pins import GiB, Quarry, planned


def _quarry(
    layers: int, width: int, seq: int, nodes: int, each: int, batch: int, gib: float, device: str
) -> Quarry:
    args = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "seq": seq, "vocab": 50304}
    return Quarry("examples/gpt.py", args, nodes, each, batch, int(gib * GiB), device)


def _mesh(pipeline: int, data: int, tensor: int) -> tuple[str, ...]:
    return f"mesh.pipeline={pipeline}", f"mesh.data={data}", f"mesh.tensor={tensor}"


# Only a cut that is uneven in time fits; the head is most of the model.
HEAVY_HEAD = _quarry(4, 2048, 1024, 4, 1, 32, 4.99, "a100-sxm-80gb")
# Only parameters divided on the tensor axis fit, or what is quickest of a pipeline.
DIVIDED = _quarry(4, 768, 256, 2, 2, 16, 2.8, "l4-24gb")
# Whatever does not offload takes several times as long.
SHORT = _quarry(12, 2048, 1024, 1, 8, 64, 4.08, "rtx4090-24gb")
# Many plans of one mesh are a little quicker than the last.
LONG_CLIMB = Quarry(
    "examples/hf/llama",
    {
        "num_hidden_layers": 8,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "seq": 512,
    },
    2,
    4,
    24,
    int(2.71 * GiB),
    "rtx4090-24gb",
)


# What solving finds of the best candidate is a quarter slower than its best plan.
GONE_THROUGH = Quarry(
    "examples/hf/vit",
    {"num_hidden_layers": 8, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    4,
    1,
    48,
    int(1.65 * GiB),
    "rtx4090-24gb",
)
# The schedule that keeps a shared parameter on one rank is the quickest by far, in one of many micro-batches.
SHARED = Quarry(
    "examples/hf/bert",
    {
        "num_hidden_layers": 2,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "seq": 512,
    },
    4,
    1,
    24,
    int(2.93 * GiB),
    "l4-24gb",
)
# One device, whose parameters have to live elsewhere.
ALONE = Quarry(
    "examples/gpt.py",
    {"n_layer": 8, "n_embd": 128, "n_head": 4, "seq": 64, "vocab": 512},
    1,
    1,
    4,
    1091429172,
    "l4-24gb",
)
# Few of the sizes that divide the batch are powers of two; in between lies the largest that fits.
SIZES = Quarry(
    "examples/gpt.py",
    {"n_layer": 4, "n_embd": 256, "n_head": 4, "seq": 64, "vocab": 1024},
    1,
    1,
    1000,
    2 * GiB,
    "l4-24gb",
)


@pytest.mark.parametrize(
    ("quarry", "pins"),
    [
        pytest.param(ALONE, ("zero=3",), id="alone"),
        pytest.param(SIZES, ("batch.micro=250",), id="sizes", marks=pytest.mark.slow),
        pytest.param(HEAVY_HEAD, _mesh(4, 1, 1), id="heavy head"),
        pytest.param(DIVIDED, _mesh(1, 2, 2), id="divided", marks=pytest.mark.slow),
        pytest.param(SHORT, _mesh(8, 1, 1), id="short", marks=pytest.mark.slow),
        pytest.param(LONG_CLIMB, _mesh(2, 2, 2), id="long climb", marks=pytest.mark.slow),
        pytest.param(LONG_CLIMB, ("batch.micro=6",), id="long climb, by size", marks=pytest.mark.slow),
        pytest.param(SHARED, ("batch.micro=2",), id="shared", marks=pytest.mark.slow),
        pytest.param(GONE_THROUGH, ("batch.micro=2",), id="gone through", marks=pytest.mark.slow),
    ],
)
def test_what_fits_is_found_without_pins(quarry: Quarry, pins: tuple[str, ...]) -> None:
    free, pinned = planned(quarry), planned(quarry, *pins)
    assert free.prediction.fits
    assert free.prediction.step_time_s <= pinned.prediction.step_time_s * (1 + 1e-9)
