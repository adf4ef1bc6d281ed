"""The benchmark measures every method, resumes, and its table says what its records say."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/ is of the repository, not of the package

from benchmarks import dense, gpu
from benchmarks.__main__ import main
from benchmarks.measure import ratio, summary, table
from benchmarks.methods import METHODS
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
    assert "rank is divisible by groups" in efficientnet["refused"]


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


def test_the_committed_table_is_of_the_committed_records():
    for name in ("benchmark", "benchmark_grid"):
        found = records(name)
        assert found and all(record["config"]["rounds"] >= 3 for record in found)
        assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == table(found)


def test_the_readme_shows_the_records():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"<!-- table: benchmark -->\n{summary(records('benchmark'))}\n<!-- end -->" in readme


def test_what_detectors_keep():
    found = records("dense_memory")
    assert (RESULTS / "dense_memory.md").read_text(encoding="utf-8") == dense.table(found)
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"<!-- table: dense_memory -->\n{dense.summary(found)}\n<!-- end -->" in readme
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
    assert [len(records(name, tmp_path)) for name in ("central", "table_10", "benchmark_bf16")] == [19, 4, 1]
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
    assert len([*gpu.cost_cells(gpu.PRESETS["gpu"], "cuda")]) == 2 * 4 + 3
