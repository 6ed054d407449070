"""Plan files as text, for tests that run them against a model."""

_USUAL = {
    "precision": "fp32",
    "optimizer": "adamw",
    "tensor": '{"*": replicate}',
    "activations": '{"*": replicate}',
    "zero": "0",
    "recompute": "none",
    "offload": "none",
}


def plan_text(stages: list[str], **sections: str) -> str:
    """A plan of the 1f1b schedule.

    Args:
        stages: the blocks of each, e.g. ``wte, blocks.0-1``.
        sections: their values as they stand in the file; a mapping over several lines starts with a newline.
    """
    pipeline = "\n  schedule: 1f1b\n  virtual: 1\n  stages:" + "".join(
        f"\n    - [{names}]" for names in stages
    )
    whole = {"version": "1", **_USUAL, **sections, "pipeline": pipeline}
    return "".join(f"{key}: {text}\n" for key, text in whole.items()).replace(": \n", ":\n")


def mapping(words: dict[str, str]) -> str:
    """A mapping over several lines."""
    return "".join(f"\n  {name}: {word}" for name, word in words.items())
