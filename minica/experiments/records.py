"""The store: JSON files of records, each record found by the configuration that it is of.

A place is either one ``.json`` file with a list of records, one a line, which is how they are committed, or a folder with a
file a record, so that several processes can write and a kill costs no record that was there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

from ..atomic import write_atomically
from ..tasks.classification import MONITORS

RESULTS = Path(__file__).parent.parent / "results"  # the committed records
DENSE = {"ap", "ap50", "miou", "pixel_accuracy"}  # metrics of detectors and segmentation networks, which have some of these
SCORED = {"tune": ("val",), "final": ("test",), None: ("test", "val")}  # what runs of each phase are scored on


def trial_key(config: dict | str) -> str:
    """What a record is found by: the same whatever the order of the keys; one that is None counts as absent."""
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if value is not None}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def read_records(place: str | os.PathLike, by: str = "config") -> dict[str, dict]:
    """Every record in a file, or in all files below a folder, by the :func:`trial_key` of its entry ``by``.

    A place that does not exist yet has none.

    Raises:
        ValueError: naming a file that holds something else, or file and record where :func:`check_record` refuses one.
    """
    place, found = Path(place), {}
    for path in sorted(place.rglob("*.json")) if place.is_dir() else [place] if place.exists() else []:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            records = {trial_key(record[by]): record for record in (held if isinstance(held, list) else [held])}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not the record of a trial ({error}); move it elsewhere, and run it again.") from error
        for key, record in records.items():
            if problem := check_record(record):
                where = f"{path}: the record {key} of {json.dumps(record[by])[:200]}"
                raise ValueError(f"{where} {problem}; remove it, and run it again.")
        found |= records
    return found


def check_record(record: dict) -> str | None:
    """What is wrong with the record of a run: it lacks the scores of its phase, or one is no possible value.

    Runs that failed have no scores; other experiments' records (without ``trainable`` parameters) have entries of their own.
    """
    config = record.get("config")
    if not isinstance(config, dict) or "error" in record or not ("trainable" in record or "phase" in config):
        return None
    if (phase := config.get("phase")) not in SCORED:
        return f"has the phase {phase!r}, which is none of tune and final"
    for split in SCORED[phase]:
        if not isinstance(scores := record.get(split), dict):
            return f"has no scores {split!r}"
        for metric in MONITORS if "network" not in config else sorted(DENSE & scores.keys()) or ["ap"]:
            value = scores.get(metric)
            # Single precision may have added 1e-7 to a perfect score.
            if not isinstance(value, (int, float)) or not (0 <= value <= 1 + 1e-6 or (metric == "auroc" and math.isnan(value))):
                return f"has {split} {metric} {value!r}, which must be a number from 0 to 1"
    return None


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
