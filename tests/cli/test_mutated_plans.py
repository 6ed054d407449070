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
    statuses = []
    for seed in range(60):
        path.write_bytes(mutated(planned_text, random.Random(seed)))
        statuses.append(main(["check", str(path), "-q"]))
        _, err = capsys.readouterr()
        assert statuses[-1] in (0, 3, 4), (seed, statuses[-1], err)
        assert "Traceback" not in err and "bug" not in err
        if statuses[-1] == 4:
            assert all(line.startswith("autopar: ") for line in err.splitlines())
    assert statuses.count(4) > 20
