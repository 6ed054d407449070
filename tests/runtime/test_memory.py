"""A rank allocates no more than its shard needs: measured on a model of more than 300 million parameters."""

import pytest

from tests.runtime.world import ROOT, Case, run_cases

BIG = {"n_layer": 24, "n_embd": 1024, "n_head": 16, "seq": 32, "vocab": 8192}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("zero3", {"data": 4, "zero": 3}),
        ("pipeline", {"pipeline": 4}),
        ("tensor", {"tensor": 4, "lines": (("blocks.*.attn.qkv", "column"), ("blocks.*.attn.proj", "row"),
                                           ("blocks.*.mlp.fc", "column"), ("blocks.*.mlp.proj", "row"),
                                           ("wte", "vocab"))}),
    ],
)  # fmt: skip
def test_peak_memory_of_a_rank_is_that_of_its_shard(name, options):
    model = str(ROOT / "examples" / "gpt.py")
    case = Case(name, "memory", model=model, args=BIG, micro_batch=1, dtype="float32", options=options)
    ranks = run_cases(4, [case], timeout_s=300, alone=True)[name]
    plain = Case("single", "plain_memory", model=model, args=BIG, micro_batch=1)
    single = run_cases(1, [plain], alone=True)["single"][0]
    assert single["parameters_bytes"] > 300e6 * 4
    assert single["peak_bytes"] > 0.9 * single["parameters_bytes"]
    for found in ranks:
        # Its own pieces, and one whole parameter at a time with what drawing it takes.
        allowed = found["shard_bytes"] + 3 * found["largest_parameter_bytes"] + 64e6
        print(name, {key: f"{value / 2**20:.0f} MiB" for key, value in found.items()})
        assert found["shard_bytes"] < 0.45 * single["parameters_bytes"]
        assert found["peak_bytes"] < allowed
        assert found["peak_bytes"] < 0.55 * single["peak_bytes"]
