"""Files made wrong in every way that hands, editors and mail programs know, and in some that malice does."""

from __future__ import annotations

import random
import re

_NUMBERS = (
    "0 -1 1 2 3 4 7 1.5 -0.0 1e400 .nan .inf -.inf 1e-320 99999999999999999999 010 0x10 0b11 1:30 1_000"
)
_TYPES = "2026-01-01 2001-12-14t21:59:43.10-05:00 true no ~ null \"\" '' [] {} [1] {a:1} '[[]]' [wte,wte]"
_WORDS = "full none column replicate sequence last 1f1b zbv interleaved h100-sxm-80gb cpu x99 TFLOP/s GB/s us"
_NEARLY = "'<=4' '>=2' 2-8 '<=0' '<=' 4-2 selective|full shard(0) shard(99999) shard(0,0) shard(-1) 1e9 1e-9"
_NAMES = "blocks.0-99999 blocks.3-1 0-0 a..b . .. '*' 70GiB 70gigs 99999999TiB 'é' '→' \u202e"
_SIGNS = '*x &x !!int !!python/name:os.system !!binary ? ?? : :: - -- --- ... | > % @ ` "\\"'
VALUES = " ".join((_NUMBERS, _TYPES, _WORDS, _NEARLY, _NAMES, _SIGNS)).split()

BOMBS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e]\n",
    "a: " + "[" * 20_000,
    "a: " + "{b: " * 20_000,
    "- " * 5_000 + "x\n",
    "[" * 30 + "]" * 30,
    "\n".join(" " * i + f"k{i}:" for i in range(300)),
    "a: [" + "1," * 60_000 + "1]\n",
    "\n".join(f"k{i}: {i}" for i in range(3_000)),
    "x" * 200_000 + ": 1\n",
    "tensor: {" + "n" * 499 + ": {" + ",".join(f"a{i}: 1" for i in range(5_000)) + "}}\n",
    "pipeline: {stages: [[" + ",".join(f"b{i}.0-99999" for i in range(2_000)) + "]]}\n",
    "mesh: {tensor: " + "9" * 5_000 + "}\n",
    "mesh: {tensor: " + "9" * 4_000 + "}\n",
    "cluster: {device: cpu, nodes: 1000000, devices_per_node: 1000000}\nmesh: {tensor: '>=2'}\n",
    "a: &a\n  <<: *a\n",
    "a: &a [*a]\n",
    "--- !!python/object/apply:os.system ['touch /tmp/autopar-was-here']\n",
    "x: !!python/object/new:os.system [exit 3]\n",
    "%YAML 1.2\n---\na: 1\n",
    "%TAG ! tag:x,2000:\n--- !y {a: 1}\n",
    "a: 1\n---\nb: 2\n...\n",
    "? [complex, key]\n: 1\n",
    "? {a: 1}\n: 1\n",
    "'unclosed\n",
    '"\\xzz"\n',
    "a: |\n  text\n b: 1\n",
    "a: >-9\n",
    "\ufeff\ufeffversion: 1\n",
    "version: 1\r\nzero: 3\r\n",
    "version: 1\rzero: 3\r",
    "\x00",
    "\x1b[31mred\x1b[0m: 1\n",
    "a: \x85b\n",
    "a\u2028b: 1\n",
    "\u202eversion: 1\n",
    "",
    " ",
    "\n\n",
    "# only a comment",
    "null",
    "42",
    "text",
    "[]",
    "{}",
)


def mutated(text: str, rng: random.Random) -> bytes:
    """A file with one to three things wrong, or (in one of ten) something else altogether."""
    if rng.random() < 0.1:
        return rng.choice(BOMBS).encode()
    for _ in range(rng.choice((1, 1, 2, 3))):
        text = rng.choice(CHANGES)(text, rng)
    data = text.encode("utf-8", "surrogatepass")
    return rng.choice(BYTES)(data, rng) if rng.random() < 0.15 else data


def _line(text: str, rng: random.Random) -> tuple[list[str], int]:
    lines = text.splitlines(keepends=True) or [""]
    return lines, rng.randrange(len(lines))


def drop_line(text: str, rng: random.Random) -> str:
    lines, at = _line(text, rng)
    return "".join(lines[:at] + lines[at + 1 :])


def double_line(text: str, rng: random.Random) -> str:
    lines, at = _line(text, rng)
    return "".join([*lines[: at + 1], lines[at], *lines[at + 1 :]])


def swap_lines(text: str, rng: random.Random) -> str:
    lines, at = _line(text, rng)
    other = rng.randrange(len(lines))
    lines[at], lines[other] = lines[other], lines[at]
    return "".join(lines)


def indent(text: str, rng: random.Random) -> str:
    lines, at = _line(text, rng)
    lines[at] = rng.choice([" ", "  ", "\t", "      "]) + lines[at]
    return "".join(lines)


def dedent(text: str, rng: random.Random) -> str:
    lines, at = _line(text, rng)
    lines[at] = lines[at].removeprefix(" " * rng.randint(1, 4))
    return "".join(lines)


def truncate(text: str, rng: random.Random) -> str:
    return text[: rng.randrange(len(text) + 1)]


def rename(text: str, rng: random.Random) -> str:
    """A key or a word with a letter changed, doubled or gone."""
    words = list(re.finditer(r"[A-Za-z_][\w.*-]*", text))
    if not words:
        return text
    found = rng.choice(words)
    word, at = found[0], rng.randrange(len(found[0]))
    new = rng.choice([word[:at] + word[at + 1 :], word[:at] + "x" + word[at:], word + word, word.upper(), ""])
    return text[: found.start()] + new + text[found.end() :]


def replace_value(text: str, rng: random.Random) -> str:
    """A value in place of another: of another type, out of range, or of another language."""
    values = list(re.finditer(r"(?<=: )[^\s,}\]#]+|(?<=[\[ ])[\w.*-]+(?=[,\]])", text))
    if not values:
        return text
    found = rng.choice(values)
    return text[: found.start()] + rng.choice(VALUES) + text[found.end() :]


def move_value(text: str, rng: random.Random) -> str:
    """A value of the file in another's place."""
    values = list(re.finditer(r"(?<=: )[^\s,}\]#]+", text))
    if len(values) < 2:
        return text
    one, other = rng.choice(values), rng.choice(values)
    return text[: one.start()] + other[0] + text[one.end() :]


def garble(text: str, rng: random.Random) -> str:
    """A character that means something to YAML somewhere."""
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice([*"{}[]:,#&*!|>'\"%@`-?\t\\\n~<", "<<: *a", "\r\n", "\u00a0"]) + text[at:]


def insert_bomb(text: str, rng: random.Random) -> str:
    lines, at = _line(text, rng)
    return "".join([*lines[:at], rng.choice(BOMBS), "\n", *lines[at:]])


def carriage_returns(text: str, rng: random.Random) -> str:
    return text.replace("\n", rng.choice(["\r\n", "\r", "\n\n"]))


CHANGES = (
    drop_line,
    double_line,
    swap_lines,
    indent,
    dedent,
    truncate,
    rename,
    rename,
    replace_value,
    replace_value,
    replace_value,
    replace_value,
    move_value,
    garble,
    garble,
    insert_bomb,
    carriage_returns,
)


def _latin(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return (
        data[:at] + rng.choice([b"\xff", b"\xc3\x28", b"\x80", b"\xed\xa0\x80", b"\x00", b"\x07"]) + data[at:]
    )


BYTES = (
    _latin,
    _latin,
    lambda data, rng: b"\xef\xbb\xbf" + data,
    lambda data, rng: data.decode("utf-8", "replace").encode("utf-16"),
)
