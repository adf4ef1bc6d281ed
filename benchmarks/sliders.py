"""``python -m benchmarks.sliders``: from the press of a key on a slider to the changed picture, on the page and in JupyterLab.

Chromium draws, so a busy machine and a slow graphics card are in the times.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page

from minica.atomic import write_atomically
from minica.experiments import RESULTS, add_record, markdown, provenance, read_records, trial_key

from . import browser as chrome
from .measure import exit_with, median_interval

PLACES = ("explorer", "JupyterLab, notebook 02")
SLIDERS = ("compression", "kernel")

# From the key's own time stamp to the first frame with another picture; the answer is for ``window.took``.
CLOCK = """(picture) => {
  const shown = () => {
    const found = document.querySelector(picture);
    return found && (found.tagName === "IMG" ? (found.complete ? found.src : null) : found.innerHTML);
  };
  const before = shown();
  window.took = new Promise((resolve) => addEventListener("keydown", (event) => {
    const look = () => {
      const now = shown();
      if (now && now !== before) requestAnimationFrame(() => resolve(performance.now() - event.timeStamp));
      else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  }, { capture: true, once: true }));
}"""


def time_presses(page: Page, slider: Locator, picture: str, presses: int) -> list[float]:
    """Milliseconds of each press on a slider that can go right, to and fro, until what ``picture`` selects has changed."""
    times = []
    for number in range(presses):
        page.evaluate(CLOCK, picture)
        slider.press("ArrowLeft" if number % 2 else "ArrowRight")
        times.append(round(page.evaluate("window.took"), 1))
    return times


def in_explorer(browser: Browser, presses: int) -> dict[str, list[float]]:
    """The times of both sliders of the page ``docs/index.html``."""
    with chrome.watched(browser) as seen:
        seen.page.goto(chrome.EXPLORER.as_uri())
        return {name: time_presses(seen.page, seen.page.locator(f"#{name}"), "#adapter-drawing", presses) for name in SLIDERS}


def in_lab(browser: Browser, presses: int) -> dict[str, list[float]]:
    """The times of both sliders of notebook 02, open in JupyterLab."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = chrome.copy_of_sliders(Path(folder))
        with chrome.jupyter_lab(Path(folder)) as lab, chrome.watched(browser) as seen:
            chrome.open_notebook(seen.page, lab, notebook)
            widget, picture = chrome.run_all(seen.page), f"{chrome.SLIDERS} img"
            return {name: time_presses(seen.page, chrome.slider(widget, name), picture, presses) for name in SLIDERS}


def table(records: list[dict]) -> str:
    """A row a slider: the median with its 95 % interval, and the slowest press."""
    rows = []
    for record in records:
        for name, times in record["milliseconds"].items():
            found = median_interval(times)
            interval = f" ({found[1]:.0f} to {found[2]:.0f})" if found else ""
            middle = f"{statistics.median(times):.0f}{interval}"
            rows.append([record["config"]["where"], name, len(times), middle, f"{max(times):.0f}", record["hardware"]])
    return markdown(["where", "slider", "presses", "median, ms (95 % interval)", "slowest, ms", "on"], rows) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sliders", description=__doc__.splitlines()[0])
    parser.add_argument("--presses", type=int, default=20, help="of a key on each slider (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the records (default: the package's)")
    args = parser.parse_args(arguments)
    place = args.out / "sliders.json"
    with chrome.chromium() as browser:
        for where, measure in zip(PLACES, (in_explorer, in_lab), strict=True):
            config = {"where": where, "presses": args.presses}
            if trial_key(config) not in read_records(place):
                print(f"{where}: {args.presses} presses of each slider", flush=True)
                times = measure(browser, args.presses)
                add_record(place, {"config": config, "milliseconds": times, "browser": browser.version, **provenance()})
    text = table([*read_records(place).values()])
    write_atomically(place.with_suffix(".md"), text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    exit_with(main)
