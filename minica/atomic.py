"""Replaces files at once: a reader, or a crash, sees the old file or the new one, never a part."""

from __future__ import annotations

import glob
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

STALE = 3600  # seconds after which a file that was never renamed is what a killed writer left


def write_atomically(path: Path, payload: bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``payload`` in full beside ``path``, then rename it there; a failure leaves the old file and nothing else.

    Instead of bytes, ``payload`` may be a function that writes into the open file it is given: what is large need not be
    in memory twice.  The file beside is called ``.NAME.`` and 32 hexadecimal digits; those that killed writers left are
    deleted an hour later, by the next writer.
    """
    with suppress(FileNotFoundError):  # another writer may be first
        for old in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}"):
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(payload) if isinstance(payload, bytes) else payload(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
