"""Replaces files at once: a reader, or a crash, sees the old file or the new one, never a part."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_atomically(path: Path, payload: bytes) -> None:
    """Write ``payload`` in full beside ``path``, then rename it there; a failure leaves the old file and nothing else."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
