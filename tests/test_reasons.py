"""The two explanations of notebook 07: exact p values, sentences for each outcome, records that carry CKA and MMD."""

import matplotlib.pyplot as plt
import pytest
import torch
from nets import net
from scipy import stats

from minica import adapt, adapters, data, experiments
from minica.course import reason_plots
from minica.experiments import reasons
from minica.experiments.records import check_record

LEVELS = {reasons.ADAPTED: 0.5, reasons.FULL: 0.51, reasons.FIXED: 0.4}
UP = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_a_perfect_order_of_seven_is_as_rare_as_two_orders_of_all():
    rho, p = reasons.rank_correlation(UP, [value**3 for value in UP])
    assert rho == pytest.approx(1) and p == pytest.approx(2 / 5040)
    rho, p = reasons.rank_correlation(UP, UP[::-1])
    assert rho == pytest.approx(-1) and p == pytest.approx(2 / 5040)


def test_ranks_with_ties_agree_with_scipy():
    x, y = [0.3, 0.1, 0.3, 0.9, 0.5], [2.0, 1.0, 5.0, 3.0, 3.0]
    rho, p = reasons.rank_correlation(x, y)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert 0 < p <= 1


@pytest.mark.parametrize(("x", "y"), [(UP, [1.0] * 7), (UP[:2], UP[:2]), (UP, UP[:6])])
def test_what_has_no_order_is_refused(x, y):
    with pytest.raises(ValueError, match="3 to 9 pairs|no order"):
        reasons.rank_correlation(x, y)


@pytest.mark.parametrize(
    ("what", "rho", "p", "said"),
    [
        ("cka", 0.9, 0.01, "in the direction"),
        ("cka", -0.9, 0.01, "against the direction"),
        ("mmd", -0.9, 0.01, "in the direction"),
        ("mmd", 0.9, 0.01, "against the direction"),
        ("cka", 0.7, 0.09, "cannot be told from chance"),
    ],
)
def test_a_sentence_for_each_outcome(what, rho, p, said):
    assert said in reasons.sentence(what, rho, p, 7)


def made_up(plan):
    """Final records of every cell of the plan; not results of anything."""
    found = {}
    for at, cell in enumerate(plan.cells):
        at //= 3  # the number of its task
        full = cell.method != reasons.ADAPTED
        for index, point in enumerate(cell.points):
            for phase, seeds in (("tune", plan.tuning_seeds), ("final", cell.seeds)):
                for seed in seeds:
                    config = point | {"phase": phase, "seed": seed}
                    scores = {"accuracy": LEVELS[cell.method] + 0.001 * seed - 0.1 * index, "n": 100, "constant": False}
                    record = {"config": config, "trainable": 10, ("val" if phase == "tune" else "test"): scores}
                    if full:
                        layers = {"conv_stem": 1 - 0.001 * at, "conv_head": 0.9 - 0.001 * at}
                        record |= {"weight_cka": dict.fromkeys(("kernels", "filters"), layers)}
                        record |= {"mmd": {"biased": 0.1 * at, "unbiased": 0.1 * at}}
                    found[experiments.trial_key(config)] = record
    return found


@pytest.fixture
def recorded():
    plan = experiments.read_plan(experiments.CONFIGS / "why.toml")
    return plan, made_up(plan)


def test_tasks_come_from_final_records_alone(recorded):
    plan, found = recorded
    tasks = reasons.tasks(plan, found)
    assert len(tasks) == 7
    first = tasks[1]
    assert first.gains == pytest.approx([-0.01] * 3) and first.gain == pytest.approx(-0.01)
    assert first.cka["kernels"] == pytest.approx((0.999 + 0.899) / 2) and first.mmd == pytest.approx(0.1)
    assert list(first.layers) == ["conv_stem", "conv_head"]


def test_runs_that_collapsed_are_counted(recorded):
    plan, found = recorded
    final = (record for record in found.values() if record["config"].get("phase") == "final")
    next(record for record in final if record["config"]["method"] == "full")["test"]["constant"] = True
    assert sum(sum(task.failed.values()) for task in reasons.tasks(plan, found)) == 1


def test_a_task_with_a_run_missing_is_left_out(recorded):
    plan, found = recorded
    key = next(key for key, record in found.items() if record["config"].get("phase") == "final")
    del found[key]
    assert len(reasons.tasks(plan, found)) == 6


def test_the_figures_draw_every_task(recorded):
    tasks = reasons.tasks(*recorded)
    limits = set()
    for task in tasks:
        figure = reason_plots.filters_by_depth(tasks, task.name)
        limits.add(figure.axes[0].get_ylim())
        plt.close(figure)
    assert len(limits) == 1, "the axes are the same for every task"
    figure = reason_plots.gain_against(tasks, {"cka": [t.cka["kernels"] for t in tasks], "mmd": [t.mmd for t in tasks]})
    names = set(figure.axes[0].get_legend_handles_labels()[1])
    assert {"position", "orientation", "count", "cells: defect", "cells: kind", "signs", "clothing"} == names
    plt.close(figure)


def test_maps_with_and_without_adapters():
    model = net("test_resnet").eval()
    adapt(model, "residual_parallel", init="published")
    place = next(iter(adapters(model)))
    image = torch.randn(3, 64, 64)
    adapted, plain = reasons.maps_with_and_without(model, image, place)
    assert adapted.shape == plain.shape and not torch.equal(adapted, plain)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.up.weight.zero_()
            adapter.up.bias.zero_()
    torch.testing.assert_close(*reasons.maps_with_and_without(model, image, place))


def test_full_fine_tuning_records_how_far_it_moved_and_how_far_the_images_are():
    config = dict(data="shapes", task="position", train_size=32, backbone="tf_efficientnet_lite0", size=32, epochs=1)
    config |= dict(batch_size=16, lr=1e-3, weight_decay=0.0, seed=0, weight_cka=True, reference="solar-cells", phase="tune")
    record = experiments.run(config | dict(method="full", options={}), progress=False)
    assert check_record(record) is None
    for by_layer in record["weight_cka"].values():
        assert len(by_layer) > 40 and all(0 < value <= 1 for value in by_layer.values())
        assert min(by_layer.values()) < 1
    assert record["mmd"]["biased"] > record["mmd"]["unbiased"] > 0  # drawings are not solar cells
    adapted = dict(method="conv_adapter", options=dict(scheme="residual_parallel", compression=2))
    assert "weight_cka" not in experiments.run(config | adapted, progress=False)


def test_images_in_the_order_of_their_classes_are_compared_over_all_classes(monkeypatch):
    from minica.experiments import runs

    load, seen = data.load, []

    def sorted_by_class(name, **options):
        task = load(name, **options)
        order = task.test.labels.argsort()
        task.test.images, task.test.labels = task.test.images[order], task.test.labels[order]
        return task

    def features(network, images):
        seen.append({int(label) for _, label in images})
        return torch.randn(len(images), 8)

    monkeypatch.setattr(runs.data, "load", sorted_by_class)
    monkeypatch.setattr(runs, "pooled_features", features)
    monkeypatch.setattr(runs, "COMPARED", 40)
    config = dict(
        data="shapes", task="count", train_size=64, backbone="tf_efficientnet_lite0", size=32, epochs=1, method="full"
    )
    config |= dict(
        options={}, batch_size=64, lr=1e-3, weight_decay=0.0, seed=0, weight_cka=True, reference="solar-cells", phase="tune"
    )
    experiments.run(config, progress=False)
    assert len(seen) == 2 and seen[1] == {0, 1}
