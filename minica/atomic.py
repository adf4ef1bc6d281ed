"""Replaces files at once: a reader, or a crash, sees the old file or the new one, never a part."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, payload: bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``payload`` in full beside ``path``, then rename it there; a failure leaves the old file and nothing else.

    Instead of bytes, ``payload`` may be a function that writes into the open file it is given: what is large need not be
    in memory twice.  The file beside is called ``.NAME.`` and 32 hexadecimal digits.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
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
