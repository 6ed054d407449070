"""Forks of this process that work beside it, on what it will ask for; on Linux alone.

A fork knows everything that this process knew, without being told. What it hands over lies in a file in
memory, so that it never waits for being read; a pipe says where. It ends with this process, in whatever way.
Whether there are forks makes no difference to what is worked out, only to when.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import signal
import struct
import sys
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, suppress
from typing import NoReturn, Self

from autopar.lifeline import end_with_parent

Send = Callable[[bytes], None]

_PLACE = struct.Struct("qq")  # of a message in the file: offset, length; written to the pipe at once
_POSITION = struct.Struct("q")
_FREE, _TAKEN_BY_CHILD, _TAKEN_BY_PARENT = 0, 1, 2
# Each fork holds memory of its own.
_MOST_CHILDREN = 3
_POLL_S = 0.05


def num_spare_processors() -> int:
    """Processors that a fork may use while this process works: 0 where it cannot fork."""
    return len(os.sched_getaffinity(0)) - 1 if may_fork() else 0


def may_fork() -> bool:
    """Whether this system has what forks need."""
    return sys.platform.startswith("linux") and hasattr(os, "memfd_create")


class ForkedChild:
    """A forked process at work.

    Args:
        work: what it does, with a function to hand over bytes; it must not need threads of this process, nor
            locks that these may hold.

    Raises:
        OSError: the system has no room for another process.
    """

    def __init__(self, work: Callable[[Send], None]) -> None:
        self._file = os.memfd_create("autopar")
        self._reading, writing = os.pipe()
        self._parent = os.getpid()
        self.is_at_work = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            try:
                self._child = os.fork()
            except OSError:
                for descriptor in (writing, self._reading, self._file):
                    os.close(descriptor)
                raise
        if self._child == 0:
            self._live(work, writing)
        os.close(writing)

    def receive(self, patience_s: float) -> bytes | None:
        """The next of what it hands over; None where nothing comes in time or at all: see ``is_at_work``."""
        if not self.is_at_work or not select.select([self._reading], [], [], max(0.0, patience_s))[0]:
            return None
        place = os.read(self._reading, _PLACE.size)
        if len(place) < _PLACE.size:
            self.end()
            return None
        offset, length = _PLACE.unpack(place)
        return os.pread(self._file, length, offset)

    def end(self) -> None:
        """Ends it, whatever it is doing."""
        if not self.is_at_work or os.getpid() != self._parent:
            return
        self.is_at_work = False
        os.close(self._reading)
        os.close(self._file)
        with suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        with suppress(ChildProcessError):  # where somebody else reaps the children of this process
            os.waitpid(self._child, 0)

    def _live(self, work: Callable[[Send], None], pipe: int) -> NoReturn:
        """Its whole life: nothing that the parent set up for its own end may run in it."""
        offset = 0

        def send(message: bytes) -> None:
            nonlocal offset
            rest = memoryview(message)
            while rest:
                rest = rest[os.pwrite(self._file, rest, offset + len(message) - len(rest)) :]
            os.write(pipe, _PLACE.pack(offset, len(message)))
            offset += len(message)

        try:
            os.close(self._reading)
            end_with_parent(self._parent)
            gc.freeze()  # what the parent had made is not looked through, and so not copied
            with suppress(BaseException):  # the parent does by itself what it does not get
                work(send)
        finally:
            os._exit(0)


class Ending(AbstractContextManager["Ending"]):
    """Has forks at work while it is entered."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()

    @abstractmethod
    def end(self) -> None:
        """Ends the forks, whatever they are doing."""


class Ahead(Ending):
    """Pieces of work in the order in which they are wanted; forks do what this process has not begun.

    Args:
        work: does a piece, by its position, and gives what is to be handed over; nothing where it fails.
        count: of the pieces.
        begun: positions of those that are done already, or about to be.
    """

    def __init__(self, work: Callable[[int], bytes | None], count: int, begun: Collection[int] = ()) -> None:
        self._work, self._count = work, count
        self._process = os.getpid()
        self._takers = mmap.mmap(-1, max(count, 1))
        for position in begun:
            self._takers[position] = _TAKEN_BY_PARENT
        self._arrived: dict[int, bytes] = {}
        self._children: list[ForkedChild] = []
        for _ in range(min(num_spare_processors(), _MOST_CHILDREN, count - len(begun))):
            with suppress(OSError):
                self._children.append(ForkedChild(self._do_all))

    def end(self) -> None:
        """Ends the forks, whatever they are doing."""
        for child in self._children:
            child.end()

    def take(
        self, position: int, patience_s: float, meanwhile: Callable[[], bool] = lambda: False
    ) -> bytes | None:
        """What a fork has made of a piece, waited for if one is at it; None: the caller has to do it.

        Args:
            patience_s: the longest wait.
            meanwhile: does something useful; false where there is nothing to do.
        """
        if os.getpid() != self._process:
            return None  # in a fork of this process, whose children these are not
        deadline = time.monotonic() + patience_s
        self._receive(0.0)
        while position not in self._arrived and self._takers[position] == _TAKEN_BY_CHILD:
            if time.monotonic() > deadline or not any(child.is_at_work for child in self._children):
                break
            if not meanwhile():
                self._receive(_POLL_S)
            self._receive(0.0)
        self._takers[position] = _TAKEN_BY_PARENT
        return self._arrived.pop(position, None)

    def is_begun(self, position: int) -> bool:
        """Whether anybody is at a piece, or through with it."""
        return self._takers[position] != _FREE

    def begin(self, position: int) -> bool:
        """Keeps the forks from a piece; false where one has begun it, or this process has."""
        if self._takers[position] != _FREE or os.getpid() != self._process:
            return False
        self._takers[position] = _TAKEN_BY_PARENT
        return True

    def _receive(self, patience_s: float) -> None:
        for child in self._children:
            while (message := child.receive(patience_s)) is not None:
                (position,) = _POSITION.unpack_from(message)
                self._arrived[position] = message[_POSITION.size :]
                patience_s = 0.0

    def _do_all(self, send: Send) -> None:
        """What a fork does. Two that take a piece at the same moment both do it."""
        for position in range(self._count):
            if self._takers[position] == _FREE:
                self._takers[position] = _TAKEN_BY_CHILD
                made = self._work(position)
                if made is None:
                    self._takers[position] = _TAKEN_BY_PARENT
                else:
                    send(_POSITION.pack(position) + made)
