"""What holds for every test: no network, no trace in the user's home, and workers that do not fight over cores."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

import pytest


@pytest.fixture(scope="session", autouse=True)
def minica_home(tmp_path_factory):
    """A fresh ``MINICA_HOME``, shared by the workers of one session, so that pictures are decoded once."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "minica_home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINICA_HOME", str(folder))
        yield folder
