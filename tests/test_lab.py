"""A notebook's sliders in JupyterLab, in a real browser: count and picture change, and the kernel stays the one it was."""

from __future__ import annotations

import re

import pytest
from browser import browser, chrome  # noqa: F401
from playwright.sync_api import expect

from minica.counting import adapter_parameters

pytestmark = pytest.mark.xdist_group("browser")

PATIENCE = 1000 * chrome.PATIENCE


def test_both_sliders_change_count_and_picture(browser, tmp_path):  # noqa: F811
    notebook = chrome.copy_of_sliders(tmp_path)
    with chrome.jupyter_lab(tmp_path) as lab, chrome.watched(browser) as seen:
        chrome.open_notebook(seen.page, lab, notebook)
        opened, (kernel,) = len(seen.errors), lab.kernels()
        widget = chrome.run_all(seen.page)
        picture, told = widget.locator("img"), seen.page.locator(".told")
        settings = {"compression": 4, "kernel": 3}

        def shows():
            count = adapter_parameters(64, 64, kernel_size=settings["kernel"], compression=settings["compression"])
            expect(told).to_contain_text(f"{count:,} parameters", timeout=PATIENCE)
            expect(told).to_contain_text(f"one output sees {settings['kernel']} x {settings['kernel']}", timeout=PATIENCE)
            return re.search(r"drawn by process (\d+)", told.inner_text())[1]

        process, pictures = shows(), {picture.get_attribute("src")}
        for name, key, value in (("compression", "ArrowRight", 8), ("kernel", "ArrowRight", 5), ("compression", "Home", 1)):
            before = picture.get_attribute("src")
            chrome.slider(widget, name).press(key)
            settings[name] = value
            assert shows() == process
            expect(picture).not_to_have_attribute("src", before, timeout=PATIENCE)
            pictures.add(picture.get_attribute("src"))
        assert len(pictures) == 4
        assert [one["id"] for one in lab.kernels()] == [kernel["id"]]
        assert seen.page.locator(".jp-Dialog").count() == 0 and not seen.abroad
        assert not seen.errors[opened:], "in the console since the notebook was opened"
