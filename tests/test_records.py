"""The committed records: complete, what the README says of them, and one of them made again."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

import minica
from minica import experiments, presets
from minica.adapter_files import ADAPTERS
from minica.experiments.sweeps import CONFIGS, RECORDED, final_records, grid_table, pending, read_plan, sweep_table

README = (Path(__file__).parent.parent / "README.md").read_text()
METHODS = presets.QUICKSTART_METHODS | presets.PUBLISHED_START


@functools.cache
def swept(name: str) -> tuple:
    """The plan and the committed records of one sweep."""
    return read_plan(CONFIGS / f"{name}.toml"), experiments.trials(experiments.RESULTS / f"{name}.json")


def finals(name: str, method: str, **point) -> list[dict]:
    """The final runs of one cell of a sweep, such as task="count"."""
    plan, found = swept(name)
    (cell,) = [cell for cell in plan.cells if cell.method == method and cell.points[0].items() >= point.items()]
    return final_records(cell, found, plan)


def quickstart(method: str) -> list[dict]:
    configs = [presets.quickstart("laptop", METHODS[method], seed) for seed in presets.quickstart_seeds("laptop", method)]
    return experiments.recorded(configs, "quickstart")


def position(method: dict) -> list[dict]:
    return [presets.position("laptop", method, seed) for seed in range(5)]


def test_every_record_is_there():
    for name, grid in presets.GRIDS.items():
        assert len(experiments.recorded(grid(), name)) == len(grid()), f"run `python -m minica records {name}`"
        for record in experiments.records(name):
            assert {"test", "val", "trainable", "seconds", "versions", "hardware", "revision"} <= record.keys()


@pytest.mark.parametrize("name", RECORDED)
def test_every_sweep_is_complete(name):
    plan, found = swept(name)
    assert not pending(plan, found), f"run `python -m minica records {name}`"
    assert len(plan.seeds) >= 5 and not any("error" in record for record in found.values())
    for record in found.values():
        assert {"trainable", "seconds", "versions", "hardware", "revision"} <= record.keys()


def test_learning_rates_are_each_methods_best_on_validation():
    rates = experiments.records("quickstart_rates")
    for method in METHODS.values():
        chosen = {key: method[key] for key in ("method", "options")}
        tried = [record for record in rates if chosen.items() <= record["config"].items()]
        assert len(tried) == 3, "no method is tuned less than another"
        best = max(tried, key=lambda record: record["val"]["accuracy"])
        assert best["config"]["lr"] == method["lr"], method


def test_learning_rates_are_chosen_on_validation_over_two_seeds():
    def accuracy(method, lr, seed):
        (record,) = experiments.recorded([presets.position("laptop", method, seed, lr=lr)], "position")
        return record["val"]["accuracy"]

    for method in (*presets.LOCALITY_METHODS.values(), *presets.SCHEME_METHODS.values()):
        rates, finalists = (lrs[method["method"]] for lrs in (presets.POSITION_RATES, presets.POSITION_FINALISTS))
        assert len(rates) == 3, "no method is tuned less than another"
        (dropped,) = set(rates) - set(finalists)
        assert accuracy(method, dropped, 0) <= min(accuracy(method, lr, 0) for lr in finalists), method
        assert method["lr"] == max(finalists, key=lambda lr: accuracy(method, lr, 0) + accuracy(method, lr, 1)), method


def test_the_claim():
    """Conv-Adapter beyond the linear probe's spread, within a point of full fine-tuning, under 5 % of its parameters."""
    probe, adapter, full = (quickstart(name) for name in presets.QUICKSTART_METHODS)
    assert len(probe) == len(adapter) == len(full) == 5
    assert experiments.spread(adapter)[0] > experiments.spread(probe)[2]
    assert experiments.spread(adapter)[1] > experiments.spread(full)[1] - 0.01
    assert adapter[0]["trainable"] < 0.05 * full[0]["trainable"]


def test_locality():
    """Where place matters, k x k adapters are beyond the spread of 1 x 1 ones, at its rate or theirs; both beyond the probe."""
    methods = presets.LOCALITY_METHODS | presets.SAME_RATE
    found = {name: experiments.recorded(position(method), "position") for name, method in methods.items()}
    assert {len(records) for records in found.values()} == {5}
    low, _, high = experiments.spread(found["Adapters, k x k"])
    assert low > max(experiments.spread(found[name])[2] for name in ("Adapters, 1 x 1", *presets.SAME_RATE))
    assert experiments.spread(found["1 x 1, same rate"])[0] > experiments.spread(found["Linear probe"])[2]
    assert experiments.spread(found["Full fine-tuning"])[0] > high, "and full fine-tuning is beyond them all"


def test_the_schemes_have_about_equal_size():
    sizes = [experiments.recorded(position(method), "position")[0]["trainable"] for method in presets.SCHEME_METHODS.values()]
    assert min(sizes) > 0.8 * max(sizes)


def test_the_readme_shows_the_records():
    (shown,) = re.findall(r"<!-- table: quickstart -->\n(.*?)\n<!-- end -->", README, re.S)
    assert shown == experiments.markdown_table({name: quickstart(name) for name in METHODS})


@pytest.mark.parametrize("name", RECORDED)
def test_the_readme_shows_the_sweeps(name):
    (shown,) = re.findall(rf"<!-- table: {name} -->\n(.*?)\n<!-- end -->", README, re.S)
    assert shown == (sweep_table if name == "solar_cells" else grid_table)(*swept(name))


def test_the_shipped_adapter_is_the_recorded_one():
    """Cell by cell: but for the last bits, which may turn a coin that stands on its edge."""
    record = finals("solar_cells", "CA")[0]
    size = record["config"]["size"]
    model = minica.create_backbone("tf_efficientnet_lite0", num_classes=2)
    minica.load_adapter(model, ADAPTERS / "solar_cells")
    task = minica.data.load("solar-cells", size=size, **minica.normalization(model))
    logits, labels = minica.predict(model, task.test)
    wrong = (logits.argmax(1) != labels).nonzero().flatten().tolist()
    assert len(set(wrong) ^ set(record["test"]["wrong"])) <= 2
    assert record["trainable"] == minica.count(model)["trainable"] <= 0.1 * minica.count(model)["backbone"]
    assert sum(file.stat().st_size for file in (ADAPTERS / "solar_cells").iterdir()) < 1.5e6
    assert "CC BY-NC-SA 4.0" in (ADAPTERS / "solar_cells" / "adapter_config.json").read_text()


@pytest.mark.parametrize(
    ("name", "configs"),
    [
        ("quickstart", [presets.quickstart("laptop", METHODS["Conv-Adapter"], seed) for seed in range(5)]),
        *[("position", position(method)) for method in presets.SAME_RATE.values()],  # notebook 01
        ("position", position(presets.SCHEME_METHODS["residual_parallel"])),  # notebook 03
    ],
)
def test_a_recorded_point_can_be_made_again(name, configs):
    """One of the five seeds, trained anew: within their range, two points more at either side."""
    accuracy = experiments.run(configs[0], progress=False)["test"]["accuracy"]
    low, _, high = experiments.spread(experiments.recorded(configs, name))
    assert low - 0.02 <= accuracy <= high + 0.02


@pytest.mark.parametrize(
    ("name", "point"),
    [("few_shot_solar_cells", {"shots": 8}), ("vtab_packaged", {"task": "defect"})],  # notebooks 05, 06
)
def test_a_swept_point_can_be_made_again(name, point):
    plan, _ = swept(name)
    recorded = finals(name, "CA", **point)
    score = experiments.run(recorded[0]["config"], progress=False)["test"][plan.metric]
    low, _, high = experiments.spread(recorded, metric=plan.metric)
    assert low - 0.02 <= score <= high + 0.02


def test_records_are_resumed_and_kept(tmp_path):
    grid = [presets.quickstart("smoke", METHODS["Linear probe"], seed) for seed in range(2)]
    (first,) = experiments.complete("trial", grid[:1], tmp_path)
    before = (tmp_path / "trial.json").read_text()
    both = experiments.complete("trial", grid, tmp_path)
    assert both[0] == first, "a finished run is never run twice"
    assert [record["config"]["seed"] for record in both] == [0, 1]
    assert (tmp_path / "trial.json").read_text().startswith(before.rstrip("\n]"))
    assert first["test"]["n"] == 656 and 0 < first["test"]["accuracy"] < 1


def test_a_bootstrap_interval():
    values = np.repeat([0.0, 1.0], (20, 180))  # 90 % of 200 images: a standard error of 2.12 points
    low, high = experiments.bootstrap_interval(values)
    assert (low, high) == pytest.approx((0.9 - 1.96 * 0.0212, 0.9 + 1.96 * 0.0212), abs=0.006)
    assert experiments.bootstrap_interval(values) == (low, high)
    assert experiments.bootstrap_interval(np.full(50, 0.5)) == (0.5, 0.5)
    runs = [{"test": {"n": 4, "wrong": [0]}}, {"test": {"n": 4, "wrong": [0, 3]}}]
    assert experiments.rightness(runs).tolist() == [0, 1, 1, 0.5]
