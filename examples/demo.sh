#!/bin/sh
# From a model file to trained steps: run by `make demo`.
set -eu
cd "$(dirname "$0")/.."
mkdir -p out
SMALL="--arg n_layer=4 --arg n_embd=64 --arg n_head=4 --arg seq=32 --arg vocab=256"

say() { printf '\n== %s\n' "$1"; }

say "1. GPT-2 (124 M parameters) for eight H100s"
autopar plan examples/gpt.py --gpus 8 --device h100-sxm-80gb -o out/gpt2.yaml
cat out/gpt2.yaml

say "2. A small GPT for four CPU processes: two pipeline stages, the attention of each split in two"
# The solver would leave so small a model whole; what --set fixes is law, and it completes the rest.
# shellcheck disable=SC2086
autopar plan examples/gpt.py $SMALL --gpus 4 --device cpu --batch 16 \
    --set mesh.pipeline=2 --set mesh.tensor=2 \
    --set 'tensor.blocks.*.attn.qkv=column' --set 'tensor.blocks.*.attn.proj=row' -o out/small.yaml
cat out/small.yaml

say "3. Train it, first in one process, then on four"
python examples/train.py out/small.yaml --steps 10 --single --losses out/single.json
torchrun --standalone --nproc-per-node 4 examples/train.py out/small.yaml --steps 10 --losses out/parallel.json

say "4. The losses side by side"
python - <<'PYTHON'
import json

single, parallel = (json.load(open(f"out/{name}.json")) for name in ("single", "parallel"))
print(f"{'step':>4}  {'one process':>12}  {'four processes':>14}  {'difference':>10}")
for step, (one, four) in enumerate(zip(single, parallel, strict=True)):
    print(f"{step:>4}  {one:>12.6f}  {four:>14.6f}  {abs(one - four):>10.1e}")
worst = max(abs(one - four) / abs(one) for one, four in zip(single, parallel, strict=True))
assert worst < 1e-4, f"the losses differ by {worst:.1e}"
assert parallel[-1] < parallel[0], "the loss did not fall"
PYTHON
