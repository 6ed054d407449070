"""The package as people get it: its public names, and the wheel in an environment of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import autopar

ROOT = Path(__file__).resolve().parents[1]


def test_public_names() -> None:
    assert autopar.__all__ == [
        "ParallelModel",
        "__version__",
        "export_checkpoint",
        "latest_checkpoint",
        "parallelize",
    ]
    assert all(getattr(autopar, name) for name in autopar.__all__)
    assert set(autopar.__all__) <= set(dir(autopar))
    with pytest.raises(AttributeError, match="module 'autopar' has no attribute 'paralelize'"):
        autopar.paralelize  # noqa: B018


def test_importing_autopar_does_not_import_torch() -> None:
    program = "import sys, autopar; print('torch' in sys.modules, autopar.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", autopar.__version__]


@pytest.mark.slow
def test_wheel_plans_in_an_environment_of_its_own(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    # Without isolation: the backend comes with the `dev` extra, so that nothing is fetched.
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist)]
    run([*build, str(ROOT)], tmp_path)
    (wheel,) = dist.glob("autopar-*.whl")
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    # Without dependencies: torch alone is 200 MB to fetch. They come from here, by a .pth line behind the new
    # environment's own packages; the editable autopar does not, since its finder is not run from there.
    run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], tmp_path)
    here = sysconfig.get_path("purelib")
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"import sys; sys.path.append({here!r})\n")

    where = run([str(python), "-c", "import autopar; print(autopar.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(environment)
    assert "h100-sxm-80gb" in run([str(environment / "bin" / "autopar"), "devices"], tmp_path)
    model = ROOT / "examples" / "gpt.py"
    small = "--arg n_layer=2 --arg n_embd=64 --arg n_head=4 --arg seq=32 --arg vocab=256".split()  # noqa: SIM905
    command = [str(environment / "bin" / "autopar"), "plan", str(model), *small]
    text = run([*command, "--gpus", "2", "--device", "cpu", "--batch", "8", "--json"], tmp_path)
    assert json.loads(text)["status"] in ("optimal", "feasible")


def run(command: list[str], folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
