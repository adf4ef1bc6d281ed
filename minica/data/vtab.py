"""Reads VTAB-1k in the layout that NOAH's script writes and most later work shares."""

from __future__ import annotations

from pathlib import Path

from .catalogue import VTAB
from .files import find_folder, listed, read_list
from .images import Collection

REGENERATED = "REGENERATED.txt"  # in the folder of a task that data_scripts/regenerate.py made


def read_vtab(name: str, root: Path) -> Collection:
    """One of the 19 tasks of 1,000 training images (Zhai et al. 2019).

    ``vtab-1k/<task>/{train800,val200,train800val200,test}.txt`` have lines ``images/train800/000000.jpg 7``.  Choices are
    made by training on 800 and looking at 200; the last run trains on all thousand, listed in ``train800val200.txt``.
    Where a copy has only that list, its first 800 lines are the training part; where it lacks it, the two parts are joined.

    Not every class has training images: of SUN397's 397 only 309 are among the 800.

    Raises:
        ValueError: if the folder or a list is missing, or a list is wrong (see :func:`~minica.data.files.listed`).
    """
    facts, full = VTAB[name], f"vtab/{name}"
    folder = find_folder(root, "vtab-1k", facts.folders, full)
    both = folder / "train800val200.txt"
    if (folder / "train800.txt").exists() or not both.exists():
        lists = {"train": read_list(folder / "train800.txt"), "val": read_list(folder / "val200.txt")}
        if both.exists():
            lists["final"] = read_list(both)
    else:
        thousand = read_list(both)
        lists = {"train": thousand[: facts.train], "val": thousand[facts.train :]}
    lists["test"] = read_list(folder / "test.txt")
    classes = facts.names or [str(label) for label in range(facts.classes)]
    source = f"VTAB-1k, {facts.paper}"
    if (folder / REGENERATED).exists():
        source += ", regenerated: not the published images"
    return listed(full, [folder], lists, classes, source, absent=True)
