"""Standard output and error as a command has them: no reader holds it up, and none that is gone breaks it.

What is printed waits in memory and is written by a thread, so that a launcher whose reader has stopped still serves
its actors and its signals. A reader that went away is no error, as with SIGPIPE; nor is a standard error that nobody
can write to. Anything else that keeps standard output from being written is told at the end.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Bytes that may wait for a reader; whoever prints more than that waits too.
_MOST = 1 << 24
#: Seconds that a reader has for the rest once the user wants an end.
GRACE = 1.0


class Writer(io.RawIOBase):
    """The writing end of a descriptor, served by a thread of its own."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._changed = threading.Condition()
        #: why nothing more is written
        self.error: OSError | None = None
        self._dropped = False
        threading.Thread(target=self._serve, name=f"writer of {fd}", daemon=True).start()

    def write(self, data: ReadableBuffer) -> int:
        chunk = bytes(data)
        with self._changed:
            while self._size >= _MOST and self._is_open():
                self._changed.wait()
            if chunk and self._is_open():
                self._waiting.append(chunk)
                self._size += len(chunk)
                self._changed.notify_all()
        return len(chunk)

    def settle(self, seconds: float | None = None) -> bool:
        """Waits until all is written, or for so long; whether nothing waits any more."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while self._waiting and self._is_open():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def drop(self) -> None:
        """Nothing more is written."""
        with self._changed:
            self._dropped = True
            self._changed.notify_all()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def _is_open(self) -> bool:
        return self.error is None and not self._dropped

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and self._is_open():
                    self._changed.wait()
                if not self._is_open():
                    return
                chunk = self._waiting[0]
            try:
                written = os.write(self._fd, chunk)
            except BlockingIOError:  # another program made the terminal or pipe so
                select.select([], [self._fd], [])
                continue
            except OSError as error:
                written, self.error = 0, error
            with self._changed:
                self._size -= written
                if written == len(chunk):
                    self._waiting.popleft()
                else:
                    self._waiting[0] = chunk[written:]
                self._changed.notify_all()


@contextmanager
def standard_streams() -> Iterator[Writer | None]:
    """Puts writers in the place of the process's own two streams, and waits at the end until all is written.

    Where both lead to the same terminal, pipe or file, they share one: what is printed by either comes in the order in
    which it was printed.

    Yields that of standard output; None where somebody else has taken its place, who then keeps it.
    """
    _fill_closed()
    before = sys.stdout, sys.stderr
    output = error = None
    if sys.stdout is sys.__stdout__:
        output = Writer(1)
        sys.stdout = _text(output, sys.stdout, lines=output.isatty())
    if sys.stderr is sys.__stderr__:
        error = output if output is not None and os.path.samestat(os.fstat(1), os.fstat(2)) else Writer(2)
        sys.stderr = _text(error, sys.stderr, lines=True)
    try:
        try:
            yield output
        except KeyboardInterrupt:
            drop_unread()
            raise
        finally:
            settle()
    finally:
        for writer in filter(None, (output, error)):
            writer.drop()
        sys.stdout, sys.stderr = before


def settle(seconds: float | None = None) -> bool:
    """Waits until all that was printed is written, or for so long; whether it is."""
    deadline = None if seconds is None else time.monotonic() + seconds
    done = True
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if (writer := _writer_of(stream)) is not None:
            done &= writer.settle(None if deadline is None else max(0.0, deadline - time.monotonic()))
    return done


def drop_unread(seconds: float = GRACE) -> None:
    """Gives readers so long; of a stream that is not read by then, the rest and all that follows is lost."""
    settle(seconds)
    for stream in (sys.stdout, sys.stderr):
        writer = _writer_of(stream)
        if writer is not None and not writer.settle(0):
            writer.drop()


def _writer_of(stream: TextIO) -> Writer | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Writer) else None


def _text(writer: Writer, model: TextIO | None, lines: bool) -> TextIO:
    """Encoded as the stream whose place it takes."""
    encoding = "utf-8" if model is None else model.encoding
    errors = "backslashreplace" if model is None else model.errors
    return io.TextIOWrapper(io.BufferedWriter(writer), encoding, errors, line_buffering=lines)


def _fill_closed() -> None:
    """Nobody listens at a descriptor that was closed, and nothing else may come to have its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
