"""The committed records: complete, what the README says of them, and one of them made again."""

import functools
import re

import numpy as np
import pytest

import minica
from minica import experiments
from minica.adapter_files import ADAPTERS
from minica.course import presets
from minica.course.results import plan_at, records_or_runs
from minica.experiments import CONFIGS, RECORDED, RESULTS, collapse, final_records, read_plan, read_records
from minica.experiments.plans import chosen, pending


@functools.cache
def swept(name: str) -> tuple:
    """The plan and the committed records of one sweep."""
    return read_plan(CONFIGS / f"{name}.toml"), experiments.read_records(experiments.RESULTS / f"{name}.json")


def finals(name: str, method: str, **point) -> list[dict]:
    """The final runs of one cell of a sweep, such as task="count"."""
    plan, found = swept(name)
    (cell,) = [cell for cell in plan.cells if cell.method == method and cell.points[0].items() >= point.items()]
    return final_records(cell, found, plan)


@pytest.mark.parametrize("name", RECORDED)
def test_every_sweep_is_complete(name):
    plan, found = swept(name)
    assert not pending(plan, found), f"run `python -m minica records {name}`"
    assert len(plan.seeds) >= 5 and not any("error" in record for record in found.values())
    for record in found.values():
        assert {"trainable", "seconds", "versions", "hardware", "revision"} <= record.keys()
        assert plan.phases or {"test", "val"} <= record.keys()
    said = re.search(r"# (\d+) runs", (CONFIGS / f"{name}.toml").read_text())
    assert plan.phases or int(said[1]) == len(found)


@pytest.mark.parametrize(("name", "scale"), [("quickstart", presets.QUICKSTART), ("position", presets.POSITION)])
def test_the_laptop_preset_is_what_was_recorded(name, scale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan, found = swept(name)
    results = records_or_runs(plan_at(name, **scale["laptop"]))
    assert results.source == "recorded" and not any(tmp_path.iterdir()), "nothing is trained"
    assert results.by_method() == {cell.method: final_records(cell, found, plan) for cell in plan.cells}


@pytest.mark.parametrize("name", RECORDED)
def test_no_method_is_tuned_less_than_another(name):
    plan, _ = swept(name)
    assert len({len(cell.points) for cell in plan.cells if len(cell.points) > 1}) == 1  # a control has one point


def test_learning_rates_are_each_methods_best_on_validation():
    plan, found = swept("quickstart")
    for cell in plan.cells:
        assert len(cell.points) == 3
        tried = [record for record in found.values() if record["config"]["options"] == cell.points[0]["options"]]
        tried = [r for r in tried if r["config"]["method"] == cell.points[0]["method"] and r["config"]["seed"] == 0]
        best = max(tried, key=lambda record: record["val"]["accuracy"])
        assert {*cell.grid["lr"]} <= {record["config"]["lr"] for record in tried} and len(tried) in (3, 4)  # one beyond an edge
        assert {r["config"]["lr"] for r in final_records(cell, found, plan)} == {best["config"]["lr"]}


def test_learning_rates_are_chosen_on_validation_over_two_seeds():
    plan, found = swept("position")
    best = {}
    for cell in plan.cells:
        if cell.rate_of:
            continue
        accuracies: dict[float, dict[int, float]] = {}  # rate -> seed -> accuracy
        for record in found.values():
            config = record["config"]
            if config["seed"] < 2 and all(config[key] == cell.points[0][key] for key in ("method", "options")):
                accuracies.setdefault(config["lr"], {})[config["seed"]] = record["val"]["accuracy"]
        both = {lr: sum(of.values()) for lr, of in accuracies.items() if {*of} == {0, 1}}
        assert both.keys() >= {*cell.grid["lr"]} and len(both) in (3, 4), cell.method  # one beyond an edge
        best[cell.method] = max(both, key=both.get)
        assert chosen(cell, found, plan)[0]["lr"] == best[cell.method], cell.method
    (control,) = [cell for cell in plan.cells if cell.rate_of]
    assert {run["config"]["lr"] for run in final_records(control, found, plan)} == {best[control.rate_of]}


def test_the_claim():
    """Conv-Adapter beyond the linear probe's spread, within a point of full fine-tuning, under 5 % of its parameters."""
    probe, adapter, full = (finals("quickstart", name) for name in ("Linear probe", "Conv-Adapter", "Full fine-tuning"))
    assert len(probe) == len(adapter) == len(full) == 5
    assert experiments.spread(adapter)[0] > experiments.spread(probe)[2]
    assert experiments.spread(adapter)[1] > experiments.spread(full)[1] - 0.01
    assert adapter[0]["trainable"] < 0.05 * full[0]["trainable"]


def test_locality():
    """Where place matters, k x k adapters are beyond the spread of 1 x 1 ones at one rate; at each one's own rate they are not.
    Full fine-tuning with its statistics frozen is beyond both, and both are beyond the probe."""
    plan, records = swept("position")
    ends = {cell.method: experiments.spread(final_records(cell, records, plan)) for cell in plan.cells}
    (low, mean, high), (_, own, highest) = ends["Adapters, k x k"], ends["Adapters, 1 x 1"]
    assert low > ends["1 x 1, same rate"][2] and own < mean < high and low < highest
    assert ends["Full fine-tuning, statistics frozen"][0] > max(high, highest)
    assert min(ends["Adapters, 1 x 1"][0], ends["1 x 1, same rate"][0]) > ends["Linear probe"][2]


def test_hand_signs_by_student_and_by_image_differ_in_their_splits_alone():
    plan, records = swept("signs")
    chosen_by_student = {cell.method: final_records(cell, records, plan)[0]["config"] for cell in plan.cells}
    for cell in read_plan(CONFIGS / "signs_images.toml", rehearse=False).cells:
        assert cell.points[0] | {"seed": 1, "phase": "final"} == chosen_by_student[cell.method] | {"task": "images"}, (
            cell.method
        )


def test_the_schemes_have_about_equal_size():
    schemes = ("conv_parallel", "conv_sequential", "Adapters, k x k", "residual_sequential")
    sizes = [finals("position", method)[0]["trainable"] for method in schemes]
    assert min(sizes) > 0.8 * max(sizes)


def test_the_price_of_the_default_warm_up():
    """Less than a point where nothing collapses, from all ten pairs of each of four tasks."""
    cost = collapse.price(read_records(RESULTS / "collapse.json"))
    assert len(cost.differences) == 40 and cost.low > -0.01


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
    ("name", "method"),
    [
        ("quickstart", "Conv-Adapter"),
        ("position", "1 x 1, same rate"),  # notebook 01
        ("position", "Adapters, k x k"),  # notebook 03's residual_parallel
    ],
)
def test_a_recorded_point_can_be_made_again(name, method):
    """One of the five seeds, trained anew: within their range, two points more at either side."""
    recorded = finals(name, method)
    accuracy = experiments.run(recorded[0]["config"], progress=False)["test"]["accuracy"]
    low, _, high = experiments.spread(recorded)
    assert len(recorded) == 5 and low - 0.02 <= accuracy <= high + 0.02


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


def test_what_is_not_recorded_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    smoke = presets.QUICKSTART["smoke"]
    first = records_or_runs(plan_at("quickstart", methods=["Linear probe"], **smoke))
    ((cell, (run,)),) = first.finals
    assert first.source == "trained here" and (cell.method, run["config"]["seed"]) == ("Linear probe", 0)
    assert run["config"]["lr"] == 2e-3, "the rate that the committed records chose"
    assert run["test"]["n"] == 656 and 0 < run["test"]["accuracy"] < 1
    written = {path: path.read_text() for path in (tmp_path / "records" / "quickstart").iterdir()}
    both = records_or_runs(plan_at("quickstart", methods=["Linear probe"], **smoke | {"seeds": 2})).by_method()["Linear probe"]
    assert both[0] == run, "a finished run is never run twice"
    assert [record["config"]["seed"] for record in both] == [0, 1]
    assert all(path.read_text() == text for path, text in written.items())
    assert records_or_runs(plan_at("quickstart", methods=["Linear probe"], **smoke), retrain=True).found.keys() == {
        experiments.trial_key(run["config"])
    }
    assert len([*(tmp_path / "records").rglob("*.json")]) == 3, "retrained in a folder of its own"


def test_a_run_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_at("quickstart", methods=["Linear probe"], seeds=1, size=32, train_size=10**6)
    with pytest.raises(RuntimeError, match="1 runs in .*quickstart failed, the first with ValueError: train_size must be"):
        records_or_runs(plan)


@pytest.mark.parametrize("place", ["records", "records.json"])
def test_the_store(place, tmp_path):
    """A record is found by its configuration, whatever its order, and replaced by the next one of that."""
    place = tmp_path / "new" / place
    assert experiments.read_records(place) == {}
    records = [{"config": {"lr": 0.1, "seed": seed}, "seconds": seed} for seed in range(3)]
    for record in [*records, records[1] | {"seconds": 9}]:
        experiments.add_record(place, record)
    key = experiments.trial_key({"seed": 1, "train_size": None, "lr": 0.1})
    assert experiments.read_records(place)[key]["seconds"] == 9 and len(experiments.read_records(place)) == 3
    assert not list(tmp_path.rglob(".*")), "nothing unfinished is left"
    experiments.add_record(tmp_path / "survey.json", {"architecture": "vgg11"}, by="architecture")
    assert experiments.read_records(tmp_path / "survey.json", by="architecture").keys() == {experiments.trial_key("vgg11")}
    with pytest.raises(ValueError, match="survey.json is not the record of a trial"):
        experiments.read_records(tmp_path / "survey.json")


def test_a_bootstrap_interval():
    values = np.repeat([0.0, 1.0], (20, 180))  # 90 % of 200 images: a standard error of 2.12 points
    low, high = experiments.bootstrap_interval(values)
    assert (low, high) == pytest.approx((0.9 - 1.96 * 0.0212, 0.9 + 1.96 * 0.0212), abs=0.006)
    assert experiments.bootstrap_interval(values) == (low, high)
    assert experiments.bootstrap_interval(np.full(50, 0.5)) == (0.5, 0.5)
    runs = [{"test": {"n": 4, "wrong": [0]}}, {"test": {"n": 4, "wrong": [0, 3]}}]
    assert experiments.per_image_accuracy(runs).tolist() == [0, 1, 1, 0.5]
