"""Makes the plans of plans/ and the table of plans/README.md.

    python benchmarks/ready_plans.py [--only NAME ...] [--table]

``--table`` plans nothing and writes the table anew from the plans as they are.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "plans" / "README.md"
_GPT, _HF = "examples/gpt.py", "examples/hf"
_BEGIN, _END = "<!-- table: benchmarks/ready_plans.py -->", "<!-- end of table -->"


@dataclass(frozen=True, slots=True)
class Ready:
    """One plan that comes with autopar.

    Attributes:
        file: its name in plans/, without the ending.
        global_batch: samples a step, as those who trained the model chose it or near it.
    """

    model: str
    file: str
    target: str
    device: str
    num_devices: int
    devices_per_node: int
    global_batch: int
    args: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the plan lies."""
        return ROOT / "plans" / f"{self.file}.yaml"

    @property
    def words(self) -> list[str]:
        """The command that makes the plan, without where it goes."""
        words = ["autopar", "plan", self.target]
        for name, value in self.args.items():
            words += ["--arg", f"{name}={value}"]
        words += ["--gpus", str(self.num_devices), "--gpus-per-node", str(self.devices_per_node)]
        return [*words, "--device", self.device, "--batch", str(self.global_batch)]


READY = (
    Ready("GPT-2 124M", "gpt2-8x4090", _GPT, "rtx4090-24gb", 8, 8, 512),
    Ready("Llama-3-8B", "llama3-8b-8xh100", f"{_HF}/llama", "h100-sxm-80gb", 8, 8, 128, {"seq": 8192}),
    Ready(
        "Llama-3-70B",
        "llama3-70b-64xh100",
        f"{_HF}/llama",
        "h100-sxm-80gb",
        64,
        8,
        512,
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "seq": 8192,
        },
    ),
    Ready(
        "GPT-3 175B",
        "gpt3-175b-1024xa100",
        _GPT,
        "a100-sxm-80gb",
        1024,
        8,
        1536,
        {"n_layer": 96, "n_embd": 12288, "n_head": 96, "seq": 2048},
    ),
    Ready("ResNet-50", "resnet50-32xv100", f"{_HF}/resnet", "v100-sxm-32gb", 32, 8, 8192),
    Ready(
        "Mixtral-8x7B", "mixtral-8x7b-64xh200", f"{_HF}/mixtral", "h200-sxm-141gb", 64, 8, 512, {"seq": 4096}
    ),
    Ready(
        "T5-11B",
        "t5-11b-16xa100",
        f"{_HF}/t5",
        "a100-sxm-80gb",
        16,
        8,
        2048,
        {
            "d_model": 1024,
            "d_ff": 65536,
            "d_kv": 128,
            "num_heads": 128,
            "num_layers": 24,
            "num_decoder_layers": 24,
            "seq": 512,
        },
    ),
)


def make(ready: Ready, output: Path) -> None:
    """Plans into a file.

    Raises:
        SystemExit: planning failed; its output is shown.
    """
    command = [sys.executable, "-m", "autopar.cli", *ready.words[1:], "-q", "-o", str(output)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{ready.model} failed with exit status {done.returncode}:\n{done.stderr}")


def table(plans: Sequence[Ready] = READY) -> str:
    """What plans/README.md shows of the plans as they are."""
    lines = [
        "| model | cluster | plan | pipeline x data x tensor | predicted step | MFU |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    for ready in plans:
        document = yaml.safe_load(ready.path.read_text(encoding="utf-8"))
        mesh, predicted = document["mesh"], document["predicted"]
        lines.append(
            f"| {ready.model} | {ready.num_devices} x {ready.device} "
            f"| [{ready.file}.yaml]({ready.file}.yaml) "
            f"| {mesh['pipeline']} x {mesh['data']} x {mesh['tensor']} "
            f"| {predicted['step_time']} | {predicted['mfu']} |"
        )
    lines += ["", "Each was made by its command:", "", "```sh made by benchmarks/ready_plans.py"]
    lines += [f"{shlex.join(ready.words)} -o plans/{ready.file}.yaml" for ready in plans]
    return "\n".join([*lines, "```"])


def readme_with(text: str, new_table: str) -> str:
    """The README with another table between its two marks."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{new_table}\n\n{_END}{after}"


def write_table() -> None:
    """Writes the table of the plans that there are."""
    there = [ready for ready in READY if ready.path.exists()]
    README.write_text(readme_with(README.read_text(encoding="utf-8"), table(there)), encoding="utf-8")


def main() -> None:
    """Makes the plans that are asked for, and the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="files whose name starts so"
    )
    parser.add_argument("--table", action="store_true", help="only the table, from the plans as they are")
    options = parser.parse_args()
    for ready in () if options.table else READY:
        if not options.only or any(ready.file.startswith(part.lower()) for part in options.only):
            make(ready, ready.path)
            print(ready.path.relative_to(ROOT), flush=True)
    write_table()


if __name__ == "__main__":
    main()
