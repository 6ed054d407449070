"""Weights in and out of parallel models, on every rank; see ``world.py``."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from autopar.runtime.safetensors_file import write_tensors
from tests.runtime import world
from tests.runtime.bodies import Run, said


def weights(case):
    """Values that no way of drawing would give, by the names of the plain model's state dict."""
    source, _ = world.source_and_graph(case)
    state = source.build_model().state_dict()
    found = {}
    for index, (name, value) in enumerate(state.items()):
        same = next((key for key in found if state[key].data_ptr() == value.data_ptr()), None)
        draw = torch.Generator().manual_seed(index)
        fresh = torch.randint(1, 99, value.shape, generator=draw).to(value.dtype) / 64
        found[name] = found[same] if same else fresh.to(value.dtype)
    return found


def write_sources(folder, state):
    """The same weights in every form; returns what to give as init, by name of the form."""
    distinct = {}
    for name, value in state.items():
        if not any(value is other for other in distinct.values()):
            distinct[name] = value
    names = list(distinct)
    half = {name: index < len(names) // 2 for index, name in enumerate(names)}
    forms = {
        "mapping": state,
        "file": folder / "weights.pt",
        "dcp": folder / "dcp",
        "wrapped": folder / "wrapped",
    }
    forms["safetensors"], forms["sharded"] = folder / "one.safetensors", folder / "sharded"
    if dist.get_rank() == 0:
        torch.save(state, forms["file"])
        write(forms["safetensors"], distinct)
        forms["sharded"].mkdir()
        files = {True: "model-00001-of-00002.safetensors", False: "model-00002-of-00002.safetensors"}
        for first, file in files.items():
            part = {name: value for name, value in distinct.items() if half[name] is first}
            write(forms["sharded"] / file, part)
        index = {"metadata": {}, "weight_map": {name: files[half[name]] for name in names}}
        (forms["sharded"] / "model.safetensors.index.json").write_text(json.dumps(index))
        dcp.save(dict(distinct), checkpoint_id=forms["dcp"], no_dist=True)
        dcp.save({"model": dict(distinct)}, checkpoint_id=forms["wrapped"], no_dist=True)
    dist.barrier()
    return forms


def write(path, tensors):
    write_tensors(path, {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}, tensors.items())


def wrong_names(found, state):
    return [
        name for name, value in state.items() if not torch.equal(found[name], value.to(found[name].dtype))
    ]


def sources(case):
    """Models that start from weights in every form, and what they export, against these weights."""
    folder, state = Path(case.extra["folder"]), weights(case)
    differing = {}
    forms = write_sources(folder, state)
    for form in case.extra["forms"]:
        if form not in forms:  # what the model has written itself
            forms[form] = str(folder / form)
        model = Run(case, init=forms[form]).model
        differing[form] = wrong_names(model.full_state_dict(), state)
        if form == "mapping":
            model.export(folder / "exported.pt")
            model.export(folder / "exported.safetensors")
            model.save(folder / "checkpoint")
        model.close()
    plain = torch.load(folder / "exported.pt", weights_only=True)
    return {
        "differing": differing,
        "names": sorted(plain) == sorted(state),
        "wrong": wrong_names(plain, state),
    }


def refused(case):
    """Messages for weights that are not the model's."""
    state = weights(case)
    name = "blocks.1.qkv.weight"
    renamed = {key.replace("blocks.1", "block.1"): value for key, value in state.items()}
    cases = {
        "renamed": renamed,
        "shape": {**state, name: state[name][:-1]},
        "surplus": {**state, "blocks.9.qkv.weight": state[name]},
        "nested": {"model": state},
        "nowhere": "/nowhere/weights.pt",
    }
    return {kind: said(lambda given=given: Run(case, init=given)) for kind, given in cases.items()}
