"""The knobs of notebook 04: costs of settings, what records say, and the figures, with whole, partial and failed records."""

import builtins
import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch

import minica
from minica import experiments
from minica.course import knob_plots, presets, results
from minica.experiments import CONFIGS, KNOBS, RESULTS, collapse, knobs, plans, read_plan, read_records
from minica.experiments.plans import is_complete, known_jobs, pending

CLASSES = 16
CORNERS = [(1, 1), (1, 7), (8, 1), (8, 7)]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def record(config, accuracy, constant=False):
    scores = {"accuracy": accuracy, "balanced_accuracy": accuracy, "constant": constant}
    return {"config": config, "trainable": 1, "val": scores, "test": scores}


def made_up(plan, accuracy):
    """Records of all runs of a plan: ``accuracy(options, seed)`` is a number, None for a run that was not made, "same" for one
    that gives every image one answer, "error" for one that failed."""
    found = {}
    while todo := {key: job for key, job in pending(plan, found).items() if key not in found}:
        for key, job in todo.items():
            config = job["config"]
            value = accuracy(config["options"], config["seed"])
            if value == "error":
                found[key] = {"config": config, "error": "TrainingDiverged: made up"}
            elif value == "same":
                found[key] = record(config, 0.067, constant=True)
            else:
                found[key] = record(config, value if value is not None else 0.5)
    return {key: one for key, one in found.items() if accuracy(one["config"]["options"], one["config"]["seed"]) is not None}


def plan_of(name="knobs_position"):
    return read_plan(CONFIGS / f"{name}.toml", rehearse=False)


def rising(options, seed):
    """Larger kernels and wider bottlenecks are better; seeds differ alike in every setting, but for a trifle."""
    kernel, compression = options.get("kernel_size", 3), options.get("compression", 4)
    return 0.5 + 0.04 * kernel - 0.01 * math.log2(compression) + 0.01 * seed + 0.0005 * ((seed * kernel) % 2)


@pytest.fixture(scope="module")
def costs():
    return knobs.costs("tf_efficientnet_lite0", "residual_parallel", 64, CLASSES)


def table_of(accuracy, costs, name="knobs_position"):
    plan = plan_of(name)
    found = made_up(plan, accuracy)
    return knob_plots.Table("position", 64, knobs.settings(plan, found), costs), plan, found


def texts(figure):
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def test_a_rate_at_the_edge_of_the_grid_is_said():
    """Recorded, hand signs have the highest of three rates; made up, the middle one."""
    assert knobs.rate(*plans.recorded("knobs_signs")).startswith("The grid's rate is 0.01 of 0.001, 0.003, 0.01: the lowest or")
    plan = plan_of("knobs_signs")
    assert knobs.rate(plan, {}) == "The grid's rate is not chosen yet."
    found = made_up(plan, lambda options, seed: 0.5)
    for one in found.values():
        one["val"] = one["val"] | {"accuracy": 0.6 if one["config"]["lr"] == 3e-3 else 0.5}
    assert knobs.rate(plan, found) == "The grid's rate is 0.003 of 0.001, 0.003, 0.01: inside."


# ---------------------------------------------------------------- costs


def test_costs_are_those_of_the_network_that_is_built(costs):
    """Against parameters, and multiply-accumulates by PyTorch's counter, of real adapters at three corners of the grid."""
    for compression, kernel in [(1, 1), knobs.MATCHED_AT, (8, 7)]:
        with torch.device("meta"):
            model = minica.create_backbone("tf_efficientnet_lite0", num_classes=CLASSES, pretrained=False)
            minica.adapt(model, "residual_parallel", compression, kernel)
            counted = minica.count(model, 64)
        cost = costs[compression, kernel]
        assert (cost.down + cost.up, cost.head, cost.backbone) == tuple(counted[k] for k in ("adapters", "head", "backbone"))
        assert cost.macs + cost.network_macs == counted["macs"]
        assert cost.share == pytest.approx(counted["trainable"] / counted["total"])


def test_what_adapters_see(costs):
    """Kernels of one pixel see a pixel of the stem's map, two of the image; the rest grows by the steps of the maps."""
    assert {costs[c, 1].field for c in knobs.COMPRESSIONS} == {2}
    assert costs[1, 5].field - 2 == 2 * (costs[1, 3].field - 2) > 0
    assert costs[1, 3].field < costs[1, 3].network_field < costs[1, 7].field  # the network has kernels of 3 and 5


def test_the_control_is_matched(costs):
    """A kernel of one pixel at compression 2.1 has within 3 % as many parameters as K = 3 at 4, and not fewer."""
    small, large = costs[knobs.MATCHED_AT].adapters, costs[4, 3].adapters
    assert (small, large) == (81_952, 79_580) and 1 <= small / large < 1.03
    for name in KNOBS[:2]:
        (cell,) = [cell for cell in plan_of(name).cells if cell.method == "1 x 1, matched"]
        (leader,) = [cell for cell in plan_of(name).cells if cell.method == "gamma 4, K 3"]
        options = cell.points[0]["options"]
        assert (options["compression"], options["kernel_size"]) == knobs.MATCHED_AT and cell.grid["lr"] == leader.grid["lr"]


# ---------------------------------------------------------------- what records say


def test_whole_records(costs):
    table, plan, found = table_of(rising, costs)
    assert knobs.best(table.grid) == (1, 7)
    said = knobs.verdicts(table.grid)
    assert said[1, 7] == "best" and said[8, 1] == "worse" and set(said.values()) <= {"best", "worse", "indistinguishable"}
    control = knobs.others(plan, found)["1 x 1, matched"]
    assert knobs.locality_holds(table.grid, control) == "holds"
    lines = knobs.locality(table.grid, control)
    assert len(lines) == 5 and all("is above" in line for line in lines) and "points, 95 % interval +" in lines[-1]


@pytest.mark.parametrize(
    ("accuracy", "holds", "line"),
    [
        (lambda options, seed: 0.9 - 0.04 * options.get("kernel_size", 3) + 0.01 * seed, "fails", "is below"),
        (
            lambda options, seed: 0.5 + 0.1 * ((seed + options.get("kernel_size", 3) // 2) % 3),
            "is undecided",
            "not distinguishable",
        ),
        (lambda options, seed: "same" if options.get("kernel_size") == 1 else 0.8, "is undecided", "3 of 3 runs failed"),
        (
            lambda options, seed: None if options.get("kernel_size") == 1 else 0.8 + seed / 100,
            "has not been run",
            "not run yet",
        ),
        (lambda options, seed: None, "has not been run", "not run yet"),
    ],
)
def test_locality_can_say_no(accuracy, holds, line, costs):
    table, plan, found = table_of(accuracy, costs)
    control = knobs.others(plan, found)["1 x 1, matched"]
    assert knobs.locality_holds(table.grid, control) == holds
    assert line in knobs.locality(table.grid, control)[-1]


def test_partial_and_failed_records(costs):
    """Each is counted, and none of them is compared by a mean."""
    fate = {(1, 1): "same", (2, 1): "error", (1, 3): None}

    def some(options, seed):
        return (
            fate.get((options.get("compression"), options.get("kernel_size")), 0.6 + seed / 100)
            if seed == 2
            else rising(options, seed)
        )

    table, _, _ = table_of(some, costs)
    one, said = table.grid, knobs.verdicts(table.grid)
    assert (one[1, 1].failed, one[2, 1].broken, one[1, 3].missing) == (1, 1, 1) and one[1, 1].runs == 3
    assert (said[1, 1], said[2, 1], said[1, 3]) == ("failed", "failed", "incomplete")
    assert knobs.paired(one[1, 1], one[4, 3]) is None
    assert one[1, 1].mean == pytest.approx(sum(rising({"kernel_size": 1, "compression": 1}, seed) for seed in (0, 1)) / 2)
    shown = texts(knob_plots.knobs(table, 1, 1))
    assert any("1 of 3 gave one answer" in text for text in shown) and sum("1 of 3 failed" in text for text in shown) == 2
    assert any("2 of 3 runs" in text for text in shown)
    assert any("ended with an error" in text for text in texts(knob_plots.knobs(table, 2, 1)))


def test_a_paired_interval_is_students():
    """Differences of 1, 2 and 3 points over three seeds: 2 +- 4.303 / sqrt(3); of two shared ones, 1 and 2: 1.5 +- 6.353."""
    one, other, partial = (
        knobs.Setting(tuple(record({"seed": seed}, value) for seed, value in enumerate(values)), 0, 0, 3 - len(values))
        for values in ([0.51, 0.62, 0.73], [0.5, 0.6, 0.7], [0.5, 0.6])
    )
    found = knobs.paired(one, other)
    assert found.mean == pytest.approx(0.02) and found.high - found.mean == pytest.approx(0.01 * 4.303 / 3**0.5, rel=1e-3)
    assert knobs.paired(one, partial).low == pytest.approx(0.015 - 0.01 * 12.706 / 2, rel=1e-3)
    assert knobs.paired(one, knobs.Setting(other.learned, 1, 0, 0)) is None


def test_a_cross_is_grey_beside_its_arms(costs):
    table, _, _ = table_of(lambda options, seed: rising(options, seed), costs, "knobs_signs")
    said = knobs.verdicts(table.grid)
    assert sum(verdict == "not run" for verdict in said.values()) == 9
    assert all((said[c, k] == "not run") == (c != 4 and k != 3) for c, k in said)


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(("compression", "kernel"), CORNERS)
@pytest.mark.parametrize("state", ["whole", "empty", "failed"])
def test_the_widget_at_the_ends_of_its_sliders(compression, kernel, state, costs):
    accuracy = {"whole": rising, "empty": lambda *_: None, "failed": lambda *_: "same"}[state]
    table, _, _ = table_of(accuracy, costs)
    figure = knob_plots.knobs(table, compression, kernel)
    shown, cost = texts(figure), costs[compression, kernel]
    assert any(f"trained: {100 * cost.share:.2f} %" in text for text in shown)
    assert any(f"adapters see {cost.field} px" in text for text in shown)
    (frame,) = [patch for patch in figure.axes[0].patches if patch.get_edgecolor() == (0, 0, 0, 1)]
    assert (frame.get_x() + 0.46, frame.get_y() + 0.46) == pytest.approx(
        (knobs.COMPRESSIONS.index(compression), knobs.KERNELS.index(kernel))
    )
    dots = [line.get_xdata() for line in figure.axes[4].lines if line.get_marker() == "o"]
    expected = [100 * rising({"kernel_size": kernel, "compression": compression}, seed) for seed in range(3)]
    assert list(dots[0]) == (pytest.approx(expected) if state == "whole" else [])
    assert sum("not run" in text for text in shown) == (17 if state == "empty" else 0)
    assert sum("3 of 3 failed" in text for text in shown) == (16 if state == "failed" else 0)
    assert any("best on val." in text for text in shown) == (state == "whole")


def test_the_axes_are_the_same_for_every_setting(costs):
    table, _, _ = table_of(rising, costs)
    limits = {tuple((axis.get_xlim(), axis.get_ylim()) for axis in knob_plots.knobs(table, c, k).axes) for c, k in CORNERS}
    assert len(limits) == 1


def test_heat_maps_side_by_side(costs):
    """A whole grid beside a cross, of which nine cells are grey."""
    whole, cross = (table_of(rising, costs, name)[0] for name in ("knobs_position", "knobs_signs"))
    figure = knob_plots.heat_maps([whole, cross])
    shown = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert [len(cells) for cells in shown] == [16, 16] and [cells.count("not run") for cells in shown] == [0, 9]
    assert all(sum("best on val." in text for text in cells) == 1 for cells in shown)


def test_sliders_only_read_tables(costs, monkeypatch):
    table, _, _ = table_of(rising, costs)

    def refuse(*_, **__):
        raise AssertionError("a slider's callback trains, runs a network or reads a file")

    for target in ("minica.fit", "minica.evaluate", "minica.predict", "minica.adapt", "minica.experiments.knobs.costs"):
        monkeypatch.setattr(target, refuse)
    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    monkeypatch.setattr("minica.experiments.records.read_records", refuse)
    knob_plots.knobs(table, 1, 1).canvas.draw()  # fonts are read once
    monkeypatch.setattr(builtins, "open", refuse)
    knob_plots.knobs(table, 8, 7)
    knob_plots.by_parameters(table)


def test_the_table_of_forms(costs):
    """Ours beside the paper's; a failed run is counted and not averaged, and a form without a record says so."""

    def forms(options, seed):
        if options.get("form") == "linear":
            return "same" if seed == 1 else 0.4
        return None if options.get("form") == "spatial" else 0.7 + 0.05 * ("form" in options) + seed / 100

    table, plan, found = table_of(forms, costs)
    lines = knobs.forms_table(table.grid, knobs.others(plan, found)).splitlines()[2:]
    assert len(lines) == 9 and all(
        line.endswith(f"{mean} |") for line, mean in zip(lines, ("71.03", "70.52", "68.32"), strict=False)
    )
    assert "71.0 ± 1.0 (3) | 0 of 3 |  | 71.03" in lines[0] and "| +5.0 (+5.0 to +5.0) | 70.52" in lines[1]
    assert "40.0 ± 0.0 (2) | 1 of 3 |  | 68.32" in lines[2] and "| not run |" in lines[3] and lines[3].endswith("68.54 |")


@pytest.mark.parametrize("state", ["whole", "empty", "failed"])
def test_accuracy_by_parameters(state, costs):
    accuracy = {"whole": rising, "empty": lambda *_: None, "failed": lambda o, seed: "same" if seed else 0.5}[state]
    table, plan, found = table_of(accuracy, costs)
    control = knobs.others(plan, found)["1 x 1, matched"]
    figure = knob_plots.by_parameters(table, control)
    marks = [line.get_marker() for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert ("not run" in texts(figure)) == (state == "empty")
    assert {"whole": {"o", "s", "^", "D", "*"}, "empty": set(), "failed": {"X"}}[state] == set(marks)
    if state == "whole":
        lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
        assert [costs[c, 1].adapters for c in knobs.COMPRESSIONS] in [list(line.get_xdata()) for line in lines]


# ---------------------------------------------------------------- committed records


@pytest.mark.parametrize("name", KNOBS)
def test_what_is_recorded_is_what_the_config_asks_for(name):
    """The records may be partial, as long as each is a run of the plan and whole in itself; or at rates since left."""
    plan, found = plan_of(name), read_records(RESULTS / f"{name}.json")
    left = [found[key] for key in found.keys() - known_jobs(plan, found).keys()]
    assert len(left) == (11 if name == "knobs_position" else 0)  # "all convolutions" at the rates of the others and at its last
    for one in left:
        assert one["config"]["method"] == "residual_adapter"
        assert one["config"]["lr"] in (1e-4, 2e-4, 5e-4, 2e-3, 5e-3, 1e-2)
        assert one["test"]["constant"] == (one["config"]["lr"] >= 5e-4)
    for one in found.values():
        assert "error" in one or {"trainable", "seconds", "versions", "hardware", "revision", "val", "test"} <= one.keys()


def test_retraining_sweeps_the_plan_at_other_sizes(tmp_path, monkeypatch):
    """As long as nothing is recorded, rates are tuned again; the grid still follows the one that is tuned."""
    swept = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minica.experiments.plans._rehearse", lambda *arguments: None)
    monkeypatch.setattr(results, "sweep", lambda plan, place: swept.append(plan))
    monkeypatch.setattr("minica.experiments.plans.RESULTS", tmp_path)
    plan, found, source = results.recorded("knobs_position", True, **presets.KNOBS["smoke"])
    assert swept == [plan] and found == {} and source == "trained here" and plan.seeds == [0]
    assert all(
        (point["size"], point["train_size"], point["epochs"]) == (32, 32, 1) for cell in plan.cells for point in cell.points
    )
    assert sum(cell.rate_of == "gamma 4, K 3" for cell in plan.cells) == 15
    found = made_up(plan, rising)
    assert is_complete(plan, found) and len(found) == 15 + 10 * 3
    plan, found, source = results.recorded("knobs_position")
    assert source == "recorded" and found == {} and len(swept) == 1, "without retraining nothing is trained"


def test_the_table_of_collapse_counts_the_records():
    found = read_records(RESULTS / "collapse.json")
    cells = collapse.cells(["decisive", "causes", "trunk"], found)
    assert len(cells) == 2 + 7 + 2
    lines = knob_plots.collapse_table(cells).splitlines()
    assert len(lines) == 2 + len(cells)
    (short, records) = cells[0]
    dead = sum(collapse.collapsed(one) for one in records)
    assert len(records) == 20 and f"| {dead} of 20 (" in lines[2] and "30 of 300" in lines[2]
    assert all(one["config"] == short | {"seed": one["config"]["seed"]} for one in records)
    assert collapse.remedy(found).startswith("With 90 steps of warm-up out of 300 runs collapse less often than with 30")
    assert collapse.remedy({}).count("not run") == 2
    few = [dict(one) for one in records[:1]] + [dict(one, final_loss=0.1) for one in cells[1][1][:1]]
    few = {experiments.trial_key(one["config"]): one for one in few}
    assert "not certainly less often" in collapse.remedy(few)
    empty = knob_plots.collapse_table(collapse.cells(["decisive"], {}))
    assert empty.count("not run") == 2


def test_curves_of_collapse():
    found = [*read_records(RESULTS / "collapse.json").values()]
    dead = next(one for one in found if collapse.collapsed(one))
    alive = next(one for one in found if not collapse.collapsed(one))
    figure = knob_plots.collapse_curves({"collapsed": dead, "learned": alive})
    loss, deviation, live = figure.axes
    assert [list(line.get_ydata()) for line in loss.lines[:2]] == [[row[1] for row in one["curve"]] for one in (dead, alive)]
    assert deviation.get_yscale() == live.get_yscale() == "log"
    assert {"collapsed", "learned"} <= set(texts(figure))


def test_alpha_starts_where_it_is_told():
    """And only a Conv-Adapter has one."""
    from minica.experiments.runs import tuned_classifier

    config = {"backbone": "tf_efficientnet_lite0", "method": "conv_adapter", "size": 32}
    model = tuned_classifier(config | {"options": {"scheme": "residual_parallel", "alpha": 0.1}}, 2, pretrained=False)
    assert all((part.alpha == 0.1).all() for part in minica.adapters(model).values())
    with pytest.raises(ValueError, match="'linear' takes no options; got alpha"):
        tuned_classifier(config | {"method": "linear", "options": {"alpha": 0.1}}, 2, pretrained=False)
