"""Code in documents: the fenced blocks of a Markdown file."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(?P<language>\w+)(?P<notes>[^\n]*)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What a document fences; ``notes`` follow the language."""

    language: str
    notes: str
    body: str


def blocks_of(document: str, *languages: str) -> list[Block]:
    """Blocks of a document (a path from the root) in some languages."""
    found = [
        Block(x["language"], x["notes"].strip(), x["body"])
        for x in _BLOCK.finditer((ROOT / document).read_text())
    ]
    return [block for block in found if block.language in languages]


def commands_of(block: Block) -> list[str]:
    """The commands of a shell block, continuation lines joined, comments dropped."""
    lines = [line.split(" #")[0].strip() for line in block.body.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def shell_commands(document: str) -> list[tuple[str, str]]:
    """(command, notes of its fence) of every ```sh block of a document."""
    return [(command, block.notes) for block in blocks_of(document, "sh") for command in commands_of(block)]
