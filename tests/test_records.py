"""The committed records: complete, what the README says of them, and one of them made again."""

import re
from pathlib import Path

from minica import experiments, presets

README = (Path(__file__).parent.parent / "README.md").read_text()
METHODS = presets.QUICKSTART_METHODS | presets.PUBLISHED_START


def quickstart(method: str) -> list[dict]:
    configs = [presets.quickstart("laptop", METHODS[method], seed) for seed in presets.quickstart_seeds("laptop", method)]
    return experiments.recorded(configs, "quickstart")


def test_every_record_is_there():
    for name, grid in presets.GRIDS.items():
        assert len(experiments.recorded(grid(), name)) == len(grid()), f"run `python -m minica records {name}`"
        for record in experiments.records(name):
            assert {"test", "val", "trainable", "seconds", "versions", "hardware", "revision"} <= record.keys()


def test_learning_rates_are_each_methods_best_on_validation():
    rates = experiments.records("quickstart_rates")
    for method in METHODS.values():
        chosen = {key: method[key] for key in ("method", "options")}
        tried = [record for record in rates if chosen.items() <= record["config"].items()]
        assert len(tried) == 3, "no method is tuned less than another"
        best = max(tried, key=lambda record: record["val"]["accuracy"])
        assert best["config"]["lr"] == method["lr"], method


def test_the_claim():
    """Conv-Adapter beyond the linear probe's spread, within a point of full fine-tuning, under 5 % of its parameters."""
    probe, adapter, full = (quickstart(name) for name in presets.QUICKSTART_METHODS)
    assert len(probe) == len(adapter) == len(full) == 5
    assert experiments.spread(adapter)[0] > experiments.spread(probe)[2]
    assert experiments.spread(adapter)[1] > experiments.spread(full)[1] - 0.01
    assert adapter[0]["trainable"] < 0.05 * full[0]["trainable"]


def test_the_readme_shows_the_records():
    (shown,) = re.findall(r"<!-- table: quickstart -->\n(.*?)\n<!-- end -->", README, re.S)
    assert shown == experiments.markdown_table({name: quickstart(name) for name in METHODS})


def test_a_recorded_point_can_be_made_again():
    """One of the five seeds, trained anew: within their range, two points more at either side."""
    config = presets.quickstart("laptop", METHODS["Conv-Adapter"], seed=0)
    accuracy = experiments.run(config, progress=False)["test"]["accuracy"]
    low, _, high = experiments.spread(quickstart("Conv-Adapter"))
    assert low - 0.02 <= accuracy <= high + 0.02


def test_records_are_resumed_and_kept(tmp_path):
    grid = [presets.quickstart("smoke", METHODS["Linear probe"], seed) for seed in range(2)]
    (first,) = experiments.complete("trial", grid[:1], tmp_path)
    before = (tmp_path / "trial.json").read_text()
    both = experiments.complete("trial", grid, tmp_path)
    assert both[0] == first, "a finished run is never run twice"
    assert [record["config"]["seed"] for record in both] == [0, 1]
    assert (tmp_path / "trial.json").read_text().startswith(before.rstrip("\n]"))
    assert first["test"]["n"] == 656 and 0 < first["test"]["accuracy"] < 1
