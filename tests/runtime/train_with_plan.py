"""A training script as the README has it; run by ``test_parallelize.py`` under torchrun."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import autopar
from autopar.capture.target import load_target
from autopar.verify.rank import share_of

model_file, plan_file, result_file = sys.argv[1:4]
source = load_target(model_file)
model = autopar.parallelize(source.build_model, plan_file, timeout_s=60)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
losses = []
for _ in range(3):
    batch = source.example_batch(8)
    losses.append(model.step(share_of(batch, {}, model.data_rank, model.data_world_size)).item())
    model.clip_grad_norm_(1.0)
    optimizer.step()
    optimizer.zero_grad()
if dist.get_rank() == 0:
    Path(result_file).write_text(json.dumps(losses))
model.close()
dist.destroy_process_group()
