"""The benchmark measures every method, resumes, and its table says what its records say."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/ is of the repository, not of the package

from benchmarks import dense, families, gpu, table_10, walk
from benchmarks.__main__ import main
from benchmarks.measure import FULL, measure, median_interval, ratio, table
from benchmarks.methods import METHODS, PEFT
from minica import SCHEMES
from minica.experiments import RESULTS, read_records


def records(name, folder=RESULTS):
    return [*read_records(folder / f"{name}.json").values()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    arguments = "--precisions float32 --batch 2 --size 32 --rounds 3 --threads 1 --device cpu --backbones".split()
    arguments = [f"--out={folder}", *arguments, "test_resnet", "test_efficientnet"]
    assert main(arguments) == 0
    return folder, arguments


def test_every_method_is_measured(measured):
    for record in records("benchmark", measured[0]):
        assert record["methods"].keys() == METHODS.keys() and record["versions"]["torch"]
        for entry in record["methods"].values():
            if "refused" not in entry:
                assert len(entry["step"]) == len(entry["inference"]) == 3 and min(entry["step"]) > 0
                assert len(entry.get("folded", "abc")) == 3
        kept = {name: entry.get("activations") for name, entry in record["methods"].items()}
        order = ("Linear probe", "Conv-Adapter, lean", "Conv-Adapter", "Conv-Adapter, published form", "Full fine-tuning")
        assert sorted(order, key=kept.get) == list(order)
        trained = {record["methods"][f"Conv-Adapter{form}"]["trained"] for form in ("", ", lean", ", published form")}
        assert len(trained) == 1, "one adapter in three forms"


def test_lora_where_it_goes_and_where_not(measured):
    resnet, efficientnet = (record["methods"]["LoRA (peft)"] for record in records("benchmark", measured[0]))
    assert resnet["side_effects"]["example"] == ["layer1.0.conv1.weight", "base_model.model.layer1.0.conv1.base_layer.weight"]
    assert resnet["side_effects"]["moved"] > 0 and resnet["side_effects"]["renamed"] > 0
    assert efficientnet["refused"].startswith("ValueError: ") and "rank is divisible by groups" in efficientnet["refused"]
    text = (measured[0] / "benchmark.md").read_text()
    assert f"* test_efficientnet, LoRA (peft): {efficientnet['refused']}" in text and "| LoRA (peft) | does not run |" in text


def test_an_error_of_ours_is_no_refusal(monkeypatch):
    def broken(model, scheme, compression):
        raise RuntimeError("broken")

    monkeypatch.setitem(METHODS, "Linear probe", broken)
    with pytest.raises(RuntimeError, match="broken"):
        measure(dict(families.cell("test_resnet", 0, 1, "cpu"), size=32))


def test_it_resumes(measured, monkeypatch):
    folder, arguments = measured
    before = (folder / "benchmark.json").read_text()
    monkeypatch.setattr("benchmarks.__main__.measure", lambda cell: pytest.fail("measured twice"))
    assert main(arguments) == 0 and (folder / "benchmark.json").read_text() == before
    assert (folder / "benchmark.md").read_text() == table(records("benchmark", folder))


def test_ratios_are_of_the_same_round():
    entry = {"step": [10.0, 20.0, 40.0], "activations": 2**20, "trained": 1, "macs": 8, "peak_memory": None}
    methods = {name: dict(entry) for name in METHODS}
    methods["Linear probe"] = dict(methods["Linear probe"], step=[5.0, 4.0, 12.0])
    record = {"config": dict(backbone="b", precision="p", layout="l", batch=1, size=1), "methods": methods}
    assert ratio(record, "Linear probe", "step") == pytest.approx((0.3, 0.2, 0.5))
    assert "| Linear probe | 1 | 1.0 (1.000) | 0.30 (0.20 to 0.50) | 1.000 | - | - | - |" in table([record])


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (15, 4), (21, 6)])
def test_the_interval_of_a_median(count, rank):
    """The ranks of the binomial interval, as tables of it have them."""
    values = [float(value) for value in range(1, count + 1)]
    assert median_interval(values[::-1]) == ((count + 1) / 2, rank, count + 1 - rank)
    assert all(median_interval(values[:few]) is None for few in range(1, 6))


def family(backbone="convnext_tiny", **changed):
    """A made-up record in which everything but full fine-tuning keeps a fifth and takes as long as the lean form."""
    methods = {name: {"activations": 200, "step": [10.0] * 9} for name in METHODS} | {
        FULL: {"activations": 1000, "step": [1.0]}
    }
    return {"config": {"backbone": backbone}, "methods": methods | changed}


def test_what_was_aimed_at_is_said_either_way():
    lora = {"LoRA (peft)": {"activations": 100}}
    assert "All aims are reached." in families.bytes_table([family(**lora)])
    assert "| LoRA: 0.100 | 2.00 |" in families.bytes_table([family(**lora)])
    more = families.bytes_table([family(**{families.AUTO: {"activations": 251}}), family("resnet18")])
    assert more.endswith('Not reached: convnext_tiny `"auto"` 0.251 instead of 0.25.')
    refused = families.bytes_table([family(**{name: {"refused": "ValueError: no"} for name in PEFT})])
    assert refused.splitlines()[2].endswith("| - | - |")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([10.0] * 9, "No median is above it. Not timed yet"),
        ([12.0] * 9, "Above it: convnext_tiny 1.20 (1.20 to 1.20). Not timed yet"),
        ([11.0] * 7 + [13.0] * 2, "No median is above it. Within it, with an interval that reaches beyond: convnext_tiny 1.10"),
        ([11.0] * 3, "No median is above it. Within it, with an interval that reaches beyond: convnext_tiny 1.10."),
    ],
)
def test_what_steps_take_is_said_either_way(steps, said):
    rounds = len(steps)
    methods = {name: {"activations": 200, "step": [10.0] * rounds} for name in METHODS}
    record = {"config": {"backbone": "convnext_tiny"}, "methods": methods | {families.AUTO: {"activations": 1, "step": steps}}}
    assert said in families.steps_table([record])
    assert "not timed yet" in families.steps_table([])


def test_families_are_counted_and_then_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(families.AIMS, "test_resnet", (1.0, None))
    arguments = ["--backbones", "test_resnet", "--out", str(tmp_path)]
    assert families.main(arguments) == 0 and "not timed yet" in capsys.readouterr().out
    assert families.main([*arguments, "--rounds", "2"]) == 0
    (counted,), (timed,) = records("families", tmp_path), records("families_steps", tmp_path)
    for name, entry in counted["methods"].items():
        assert entry["activations"] == timed["methods"][name]["activations"] > 0 and "step" not in entry
        assert len(timed["methods"][name]["step"]) == 2 and "inference" not in timed["methods"][name]
    monkeypatch.setattr("benchmarks.families.measure", lambda cell: pytest.fail("measured twice"))
    assert families.main([*arguments, "--rounds", "2"]) == 0


def test_the_families_that_are_recorded():
    found, timed = records("families"), records("families_steps")
    assert {record["config"]["backbone"] for record in found} == families.AIMS.keys()
    assert all(record["methods"].keys() == METHODS.keys() for record in found)
    for name, each in (("families", found), ("families_steps", timed)):
        assert not each or (RESULTS / f"{name}.md").read_text(encoding="utf-8") == table(each)


def test_the_committed_table_is_of_the_committed_records():
    for name in ("benchmark", "benchmark_grid"):
        found = records(name)
        assert found and all(record["config"]["rounds"] >= 3 for record in found)
        assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == table(found)


def test_what_detectors_keep():
    found = records("dense_memory")
    assert (RESULTS / "dense_memory.md").read_text(encoding="utf-8") == dense.table(found)
    for record in found:
        kept = {name: entry["backbone"] for name, entry in record["methods"].items()}
        assert kept["Frozen backbone"] == 0 and kept["Conv-Adapter, lean"] <= kept["Conv-Adapter"]


def test_one_of_them_again():
    config = dict(network="upernet", backbone="tf_efficientnet_lite0", scheme="residual_parallel", compression=1)
    (recorded,) = [record for record in records("dense_memory") if record["config"].items() >= config.items()]
    for name, entry in dense.measure(recorded["config"])["methods"].items():
        assert entry == pytest.approx(recorded["methods"][name], rel=0.01), name


def test_the_script_for_a_gpu(tmp_path, capsys):
    """On a CPU at ``smoke``: it stops when its time is over, and goes on with what is missing."""
    arguments = ["--preset", "smoke", "--out", str(tmp_path)]
    assert gpu.main([*arguments, "--minutes", "0"]) == 1 and not records("table_10", tmp_path)
    assert gpu.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "0 trials known" in shown and "measured test_resnet" in shown and "| LP |" in shown
    assert [len(records(name, tmp_path)) for name in ("central", "table_10", "benchmark_bf16")] == [6, 4, 1]
    assert all(record["hardware"] and "error" not in record for record in records("central", tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert gpu.main([*arguments, "--minutes", "0"]) == 0, "nothing is left to do"
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU here; on a CPU --preset smoke"):
            gpu.main(["--out", str(tmp_path)])


def test_the_central_table_on_a_gpu():
    plan = gpu.central_plan(gpu.PRESETS["gpu"])
    assert len(plan.cells) == 10 and all(point["size"] == 128 for cell in plan.cells for point in cell.points)
    assert len([*gpu.cost_cells(gpu.PRESETS["gpu"], "cuda")]) == 2 * 4 + 9


def test_forms_stand_beside_the_paper():
    entry = {"step": [2.0] * 9, "inference": [3.0] * 9, "peak_memory": 50, "activations": 1}
    methods = {name: entry for name in METHODS} | {FULL: entry | {"peak_memory": 100, "step": [4.0] * 9}}
    record = {"config": {"backbone": "resnetv2_50x1_bit", "scheme": "conv_parallel"}, "methods": methods}
    text = table_10.beside_the_paper([record])
    # 1.21 of 1.40 ms, 0.48 of 0.43 ms, 7.35 of 7.46 GB
    assert "| ResNet50-BiT | Conv. Par. | the paper | 4.34 | 0.86 | 1.12 | 0.99 |" in text
    assert "| ours, lean | 4.34 | 0.50 (0.50 to 0.50) | 1.00 (1.00 to 1.00) | 0.50 |" in text and "peft" not in text


def test_table_10_on_this_machine(tmp_path, capsys):
    arguments = ["--backbones", "test_resnet", "--size", "32", "--rounds", "1", "--out", str(tmp_path)]
    assert table_10.main(arguments) == 0
    found = records("table_10", tmp_path)
    assert [record["config"]["scheme"] for record in found] == list(SCHEMES)
    assert all(record["methods"].keys() == {FULL, *table_10.FORMS} for record in found)
    shown = capsys.readouterr().out
    assert shown.count("| ours, lean | - |") == 4 and (tmp_path / "table_10.md").read_text() in shown
    before = (tmp_path / "table_10.json").read_bytes()
    assert table_10.main(arguments) == 0 and (tmp_path / "table_10.json").read_bytes() == before, "measured once"


def test_photographs_are_drawn_whatever_split_they_were_in(tmp_path):
    for number in range(12):
        place = tmp_path / "all" / ("train", "test")[number % 2] / ("hat", "shoe")[number // 2 % 2] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bytes([number]))
    one, other = (walk.some_of(tmp_path / "all", 9, tmp_path / name) for name in ("one", "other"))
    drawn = {path.relative_to(one): path.read_bytes() for path in one.rglob("*.jpg")}
    assert len(drawn) == 9 and {path.parts[0] for path in drawn} == {"hat", "shoe"}
    assert drawn == {path.relative_to(other): path.read_bytes() for path in other.rglob("*.jpg")}
    with pytest.raises(ValueError, match="has 12 files, of which 13 were asked for"):
        walk.some_of(tmp_path / "all", 13, tmp_path / "third")
    (tmp_path / "all" / "test" / "hat" / "0.jpg").write_bytes(b"another")
    with pytest.raises(ValueError, match="two files hat/0.jpg"):
        walk.some_of(tmp_path / "all", 13, tmp_path / "fourth")


def test_a_step_of_the_walk_that_fails_is_named(tmp_path, capsys):
    (tmp_path / "photos" / "hat").mkdir(parents=True)
    with pytest.raises(ValueError, match="install ended with status 1"):
        walk.main([str(tmp_path / "photos"), "--python", "false", "--out", str(tmp_path)])
    assert capsys.readouterr().out == "clone\ninstall\n" and not (tmp_path / "walk.json").exists()


def test_a_walk_is_a_column():
    metrics = {
        "adapters": {"accuracy": 0.8, "accuracy_95": [0.7, 0.9]},
        "linear probe": {"accuracy": 0.75, "accuracy_95": [0.6, 0.85]},
    }
    record = dict(seconds=dict(clone=1.0, install=59.0, train=100.0, predict=5.0), counts=dict(train=1350, val=75, test=75))
    record |= dict(metrics=metrics, gain={"accuracy": 0.05, "accuracy_95": [-0.02, 0.12]}, adapter=670_000, report=1_500_000)
    cells = [{"data": "clothing", "photographs": 500}, {"data": "clothing", "photographs": None}]
    text = walk.summary([record | {"config": cell, "hardware": "a CPU"} for cell in cells])
    assert text.startswith("|  | 500 photographs of clothing | all of clothing, as split |")
    for row in ("| 1,350 / 75 / 75 |", "| clone and install | 60 s |", "| in all | 165 s |", "| 80.0 % (70.0 to 90.0) |"):
        assert row in text
    assert "| +5.0 (-2.0 to +12.0) |" in text and "| 0.67 MB |" in text
