"""Mutated plans through the whole command: refused in lines, or costed; never a traceback."""

import random
from pathlib import Path

import pytest

from autopar.cli.main import main
from tests.plan.mutations import mutated


@pytest.mark.slow
def test_mutated_plans_through_the_command(
    planned_text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.yaml"
    statuses: list[int] = []
    model = planned_text[planned_text.index("model:") : planned_text.index("cluster:")].encode()
    for seed in range(60):
        data = mutated(planned_text, random.Random(seed))
        if model not in data:
            continue  # how large a model is built is its owner's business
        path.write_bytes(data)
        statuses.append(main(["check", str(path), "-q"]))
        _, err = capsys.readouterr()
        assert statuses[-1] in (0, 3, 4), (seed, statuses[-1], err)
        assert "Traceback" not in err and "bug" not in err
        if statuses[-1] == 4:
            assert all(line.startswith("autopar: ") for line in err.splitlines())
    assert statuses.count(4) > 20
