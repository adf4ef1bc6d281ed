"""The store: JSON files of records, each record found by the configuration that it is of.

A place is either one ``.json`` file with a list of records, one a line, which is how they are committed, or a folder with a
file a record, so that several processes can write and a kill costs no record that was there.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..atomic import write_atomically

RESULTS = Path(__file__).parent.parent / "results"  # the committed records


def trial_key(config: dict | str) -> str:
    """What a record is found by: the same whatever the order of the keys; one that is None counts as absent."""
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if value is not None}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def read_records(place: str | os.PathLike, by: str = "config") -> dict[str, dict]:
    """Every record in a file, or in all files below a folder, by the :func:`trial_key` of its entry ``by``.

    A place that does not exist yet has none.

    Raises:
        ValueError: naming a file that holds something else.
    """
    place, found = Path(place), {}
    for path in sorted(place.rglob("*.json")) if place.is_dir() else [place] if place.exists() else []:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            found |= {trial_key(record[by]): record for record in (held if isinstance(held, list) else [held])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the record of a trial ({error}); move it elsewhere, and run it again.") from error
    return found


def add_record(place: str | os.PathLike, record: dict, by: str = "config") -> None:
    """Write a record to a place, all at once; it replaces the one of the same key."""
    place, key = Path(place), trial_key(record[by])
    if place.suffix == ".json":
        lines = ",\n".join(map(json.dumps, (read_records(place, by) | {key: record}).values()))
        path, text = place, f"[\n{lines}\n]\n"  # a line a record: a difference in version control shows which
    else:
        path, text = place / f"{key}.json", json.dumps(record, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
