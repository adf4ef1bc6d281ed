"""Replaces files at once: a reader, or a crash, sees the old file or the new one, never a part."""

from __future__ import annotations

import glob
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, payload: bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``payload`` in full beside ``path``, then rename it there; a failure leaves the old file and nothing else.

    Instead of bytes, ``payload`` may be a function that writes into the open file it is given: what is large need not be
    in memory twice.  The file beside is called ``.NAME.`` and 32 hexadecimal digits; those that killed writers left are
    deleted.  Of several writers in one folder each waits for the one before.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with _alone_in(path.parent) as alone:
        for stale in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}") if alone else ():
            stale.unlink(missing_ok=True)
        try:
            with open(temporary, "wb") as file:
                if callable(payload):
                    payload(file)
                else:
                    file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, which ends with the process; False where there is none: on Windows and some network drives."""
    with ExitStack() as held:
        alone = False
        with suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            held.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # closing is not enough where another thread has forked
            alone = True
        yield alone
