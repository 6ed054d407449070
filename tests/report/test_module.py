"""Tables of one module."""

from autopar.report.module import OperatorUse, ParameterUse, operators_table, parameters_table
from autopar.report.text import render


def lines(table: object) -> list[str]:
    return render([table], is_terminal=False, width=120).splitlines()[2:]  # type: ignore[list-item]


def test_parameters_that_differ_in_numbers_only_are_one_row() -> None:
    names = [f"blocks.{i}.fc.weight" for i in range(90)]
    alike = [ParameterUse(name, "shard(0)", (8, 4), 16, 256) for name in names]
    other = ParameterUse("blocks.90.fc.weight", "replicate", (8, 4), 32, 512)
    rows = lines(parameters_table([*alike, other]))
    assert [row.split()[0] for row in rows] == ["blocks.*.fc.weight", "blocks.90.fc.weight"]
    assert "(90 x)" in rows[0] and "replicate" in rows[1]


def test_operators_keep_their_place_in_a_module() -> None:
    keys = [f"blocks.{i}.attn:reshape#{n}" for i in range(3) for n in range(2)]
    rows = lines(operators_table([OperatorUse(k, "reshape", "shard(2)", 8, 0.0, 0.0, ()) for k in keys]))
    assert [row.split("  ")[0] for row in rows] == [
        "blocks.*.attn:reshape#0 (3 x)",
        "blocks.*.attn:reshape#1 (3 x)",
    ]
