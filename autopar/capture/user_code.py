"""Finding the user's own line in tracebacks and in the stack traces that ``torch.export`` records."""

from __future__ import annotations

import inspect
import os
import re
import sysconfig
import traceback
from functools import lru_cache
from pathlib import Path

import torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')
_OURS_AND_LIBRARIES = (
    str(Path(torch.__file__).parent) + os.sep,
    str(Path(__file__).parents[1]) + os.sep,
    # The standard library; site-packages lies below it but belongs to the user's side (a models package,
    # say).
    sysconfig.get_paths()["stdlib"] + os.sep,
)


@lru_cache(maxsize=4096)
def is_user_file(path: str) -> bool:
    """Whether a source file is neither torch's, nor autopar's, nor the standard library's."""
    if path.startswith(("<", *_OURS_AND_LIBRARIES[:2])):
        return False
    return "site-packages" in path or not path.startswith(_OURS_AND_LIBRARIES[2])


@lru_cache(maxsize=65536)
def user_line(stack_trace: str) -> str:
    """The innermost ``file:line`` of the user's code in a formatted stack trace, or an empty string."""
    for path, line in reversed(_FRAME.findall(stack_trace)):
        if is_user_file(path):
            return f"{path}:{line}"
    return ""


def error_line(error: BaseException) -> str:
    """The innermost ``file:line`` of the user's code that raised ``error``; its causes are searched too."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SyntaxError) and seen.filename and is_user_file(seen.filename):
            return f"{seen.filename}:{seen.lineno}"
        for frame in reversed(traceback.extract_tb(seen.__traceback__)):
            if is_user_file(frame.filename):
                return f"{frame.filename}:{frame.lineno}"
        seen = seen.__cause__ or seen.__context__
    return user_line(str(error))


def calling_line() -> str:
    """The innermost ``file:line`` of the user's code that is running now, or an empty string."""
    frame = inspect.currentframe()
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
