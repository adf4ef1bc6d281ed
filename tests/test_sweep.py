"""A sweep through its command: killed, resumed, on Ray, with failures; and what a config may say."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock

from minica import data, experiments
from minica.data.scenes import draw_scenes
from minica.experiments import KNOBS, known_jobs, load_task, read_plan, runs, sweep
from minica.experiments.plans import at_edge, chosen, final_jobs, final_records, is_complete, known_points, pending
from minica.experiments.tables import grid_table, sweep_table

CONFIGS = Path(__file__).parent.parent / "configs"
TRIALS = 25  # of configs/packaged.toml: 4 + 4 + 8 tuning runs, 3 x 3 final ones

DENSE = """
size = 64
epochs = 1
batch_size = 2
seeds = [0]
weight_decay = 1e-2
lr = 1e-3
phases = false
backbones = ["tf_efficientnet_lite0"]

[[tasks]]
data = "here"

[methods.CA]
method = "conv_adapter"
scheme = "residual_parallel"

[methods.FT]
method = "full"
running_stats = false
"""


def command(config, folder, *options):
    return [sys.executable, "-m", "minica", "sweep", str(config), "--out", str(folder), "--cpus", "1", *options]


def table(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def numbers(folder):
    """Everything that a sweep found, and nothing of how long it took."""
    keys = ("config", "selection", "trainable", "train_loss", "val", "test")
    return {key: {name: record.get(name) for name in keys} for key, record in experiments.read_records(folder).items()}


def failures(folder):
    return [record["error"] for record in experiments.read_records(folder).values() if "error" in record]


def written(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The packaged sweep, undisturbed: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(CONFIGS / "packaged.toml", folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_trial_leaves_a_whole_record(whole):
    folder, shown = whole
    records = experiments.read_records(folder)
    assert len(records) == TRIALS
    for key, record in records.items():
        assert json.loads((folder / f"{key}.json").read_text()) == record
        assert {"trainable", "seconds", "peak_memory", "revision", "python", "versions", "hardware"} <= record.keys()
        final = record["config"]["phase"] == "final"
        # Test images are scored by final runs alone, and these train on val as well.
        assert ("test" in record, "val" in record, "selection" in record) == (final, not final, final)
    methods = {"full": 4, "linear": 4, "conv_adapter": 8}
    for method, tried in methods.items():
        tuned = [r for r in records.values() if r["config"]["method"] == method and "val" in r]
        finals = [r for r in records.values() if r["config"]["method"] == method and "test" in r]
        assert len(tuned) == tried and sorted(r["config"]["seed"] for r in finals) == [0, 1, 2]
        assert len({(r["config"]["lr"], r["config"]["weight_decay"]) for r in tuned}) == 4, "none is tuned less than another"
        best = max(r["val"]["accuracy"] for r in tuned)
        for record in finals:
            assert record["selection"]["grid"].items() >= {"lr": [0.01, 0.002], "weight_decay": [0.01, 0]}.items()
            assert (record["selection"]["tried"], record["selection"]["val"]) == (tried, best)
            (point,) = [r for r in tuned if r["config"] == record["config"] | {"phase": "tune", "seed": 0}]
            assert point["val"]["accuracy"] == best
        mean = sum(r["test"]["accuracy"] for r in finals) / 3
        (row,) = [line for line in table(shown) if f"{finals[0]['trainable']:,}" in line]
        assert f"| {tried} of {tried} |" in row and f"| {mean:.1%}"[:-1] in row and "of 656 images" in row


def test_killed_three_times_and_resumed(whole, tmp_path):
    _, shown = whole
    for kill in range(3):
        process = subprocess.Popen(command(CONFIGS / "packaged.toml", tmp_path), stdout=subprocess.DEVNULL)
        before, goal = len(written(tmp_path)), random.randint(1, 4)
        while len(written(tmp_path)) < before + goal and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1))  # somewhere in a trial, or while one is written
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"kill {kill} came too late"
    survivors = written(tmp_path)
    assert 3 <= len(survivors) < TRIALS
    done = subprocess.run(command(CONFIGS / "packaged.toml", tmp_path), capture_output=True, text=True, check=True)
    assert f"{len(survivors)} trials recorded" in done.stdout
    assert written(tmp_path).items() >= survivors.items(), "a finished trial is never run twice"
    assert table(done.stdout) == table(shown) and numbers(tmp_path) == numbers(whole[0])


def test_two_workers_of_ray(whole, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra sweep")
    scratch = tempfile.mkdtemp()  # short: Ray's sockets lie below it, and their names have a limit
    monkeypatch.setenv("RAY_TMPDIR", scratch)
    try:
        ray = ("--ray", "local", "--jobs", "2")
        done = subprocess.run(command(CONFIGS / "packaged.toml", tmp_path, *ray), capture_output=True, text=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert table(done.stdout) == table(whole[1]) and numbers(tmp_path) == numbers(whole[0])


def test_a_worker_of_ray_dies(tmp_path):
    """What it ran is a failure, all else goes on, and ``--retry`` makes it good."""
    pytest.importorskip("ray", reason="needs the extra sweep")
    config, folder, scratch = tmp_path / "small.toml", tmp_path / "records", tempfile.mkdtemp()
    config.write_text(
        TWO_TASKS.replace("[32, 5000]", "32").replace("[1e-2, 1e37]", "[1e-3, 1e-2, 3e-2]").replace("[1]", "[1, 2]")
    )
    try:
        with subprocess.Popen(
            command(config, folder, "--ray", "local", "--jobs", "1"),
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RAY_TMPDIR": scratch},
        ) as sweeping:
            # One that is killed between its record and its end has lost nothing; the next one has.
            while sweeping.poll() is None and not failures(folder):
                for process in psutil.Process(sweeping.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if "ray::ImplicitFunc" in " ".join(process.cmdline()):
                            process.kill()
                time.sleep(0.5)
            shown = sweeping.communicate()[0]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    assert sweeping.returncode == 1 and "Failed (1): the trial's process died 2 times: " in shown
    assert len(failures(folder)) < 4
    done = subprocess.run(command(config, folder, "--retry"), capture_output=True, text=True)
    whole = subprocess.run(command(config, tmp_path / "whole"), capture_output=True, text=True)
    assert table(done.stdout) == table(whole.stdout) != [] and numbers(folder) == numbers(tmp_path / "whole")


# Failures -------------------------------------------------------------------------------------------------------------

TWO_TASKS = """
size = 32
epochs = 1
batch_size = 16
seeds = [1]
backbones = "tf_efficientnet_lite0"
lr = [1e-2, 1e37]
weight_decay = 0
tasks = { data = "solar-cells", task = "defect", train_size = [32, 5000] }
methods = { LP = { method = "linear" } }
"""


def test_a_failed_trial_stops_nothing_and_is_listed(tmp_path, capsys):
    config, folder = tmp_path / "two.toml", tmp_path / "records"
    config.write_text(TWO_TASKS)
    assert not sweep(config, folder)
    shown = capsys.readouterr().out
    row, lacking = table(shown)[2:]
    assert "train_size 32 |" in row and "| lr 0.01\\* |" in row, "a run that diverged was tried and has lost"
    assert "train_size 5000 |" in lacking and lacking.endswith("| - | - | - | - |")
    assert "Failed (2): ValueError: train_size must be between 1 and 1574" in shown
    assert "Failed (1): TrainingDiverged: " in shown
    assert "First: solar-cells task=defect train_size=5000 tf_efficientnet_lite0 linear() lr=0.01" in shown
    assert len(experiments.read_records(folder)) == 5  # and no final run of a cell that is not tuned to the end

    before = written(folder)
    assert not sweep(config, folder)
    assert "0 to run now" in capsys.readouterr().out and written(folder) == before
    config.write_text(TWO_TASKS.replace("5000", "64").replace("1e37", "2e-3"))
    assert sweep(config, folder)  # what the new config shares with the old one is not run again
    assert written(folder).items() >= before.items()
    capsys.readouterr()
    config.write_text(TWO_TASKS)
    assert not sweep(config, folder, retry=True)
    assert "3 to run now" in capsys.readouterr().out
    assert {name for name, when in before.items() if written(folder)[name] != when} == {
        f"{key}.json" for key, record in experiments.read_records(folder).items() if "error" in record
    }


DYING = """
import os, signal, sys
from minica.experiments import sweeps

def run(config, progress):
    if config["lr"] == 1e37:
        os.kill(os.getpid(), signal.SIGKILL)
    scores = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "auroc"), 0.5)
    return {"trainable": 1, "val": scores}

sweeps.run = run
for _ in range(3):  # processes, of which each begins where the one before was killed
    if (child := os.fork()) == 0:
        complete = sweeps.sweep(sys.argv[1], sys.argv[2], cpus=1)
        sys.stdout.flush()
        os._exit(1 - complete)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_trial_that_kills_its_process_twice_is_noted_and_skipped(tmp_path):
    (tmp_path / "two.toml").write_text(TWO_TASKS.replace("[32, 5000]", "32").replace("[1e-2, 1e37]", "[1e37, 1e-2]"))
    arguments = [sys.executable, "-c", DYING, str(tmp_path / "two.toml"), str(tmp_path / "records")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    codes = [int(line) for line in done.stdout.splitlines() if re.fullmatch(r"-?\d+", line)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 1], done.stderr
    (error,) = failures(tmp_path / "records")
    assert "process died 2 times" in error and "--retry tries again" in error
    assert len(experiments.read_records(tmp_path / "records")) == 2  # the other rate went on
    assert "tf_efficientnet_lite0 linear() lr=1e+37" in done.stdout
    assert not [path for path in tmp_path.glob(".*") if path.suffix != ".lock"]


def test_an_interrupt_is_not_the_trials_fault(tmp_path, monkeypatch):
    (tmp_path / "two.toml").write_text(TWO_TASKS.replace("[32, 5000]", "32").replace(", 1e37", ""))

    def interrupted(config, progress):
        raise KeyboardInterrupt

    def refused(config, progress):
        raise ValueError("it was run")

    monkeypatch.setattr("minica.experiments.sweeps.run", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path / "two.toml", tmp_path / "records")
    monkeypatch.setattr("minica.experiments.sweeps.run", refused)
    assert not sweep(tmp_path / "two.toml", tmp_path / "records")
    assert failures(tmp_path / "records") == ["ValueError: it was run"]


def test_the_command_says_that_something_is_missing(tmp_path):
    (tmp_path / "two.toml").write_text(TWO_TASKS.replace("[32, 5000]", "5000"))
    done = subprocess.run(command(tmp_path / "two.toml", tmp_path / "records"), capture_output=True, text=True)
    assert done.returncode == 1 and "Failed (2): ValueError" in done.stdout


def test_two_sweeps_on_the_same_records(tmp_path):
    (tmp_path / "two.toml").write_text(TWO_TASKS)
    with FileLock(tmp_path / ".records.lock"), pytest.raises(ValueError, match="another sweep is writing to .*records"):
        sweep(tmp_path / "two.toml", tmp_path / "records")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "records")
    with FileLock(tmp_path / ".records.lock"), pytest.raises(ValueError, match="another sweep is writing to .*records"):
        sweep(tmp_path / "two.toml", tmp_path / "elsewhere" / "link")
    with pytest.raises(ValueError, match=r"through Ray's client \(ray://head:10001\) records do not come back"):
        sweep(tmp_path / "two.toml", tmp_path / "records", ray="ray://head:10001")


# The config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cells", "points", "finals"),
    [
        ("packaged", 3, 16, 9),
        ("quickstart", 5, 15, 25),
        ("position", 9, 27, 45),
        ("solar_cells", 2, 8, 10),
        ("few_shot_solar_cells", 16, 64, 128),
        ("vtab_packaged", 20, 60, 100),
        ("position_peft", 2, 6, 10),
        ("signs", 10, 40, 50),
        ("signs_images", 4, 4, 20),
        ("clothing", 5, 20, 25),
        ("position_trunk", 5, 20, 25),
        ("few_shot_signs", 8, 32, 64),
        ("knobs_position", 25, 75, 75),
        ("knobs_solar_cells", 17, 51, 51),
        ("knobs_signs", 7, 21, 21),
        ("clothing_published", 3, 9, 15),
        ("learning_curve", 18, 54, 90),
        ("scenes_boxes", 3, 6, 9),
        ("scenes_masks", 3, 9, 9),
        ("nuclei", 3, 9, 9),
        ("cards", 3, 9, 9),
        ("cards_c4", 3, 9, 9),
        ("table01", 184, 10580, 920),
        ("table02", 460, 23000, 2300),
        ("table03", 120, 7200, 360),
    ],
)
def test_our_configs(name, cells, points, finals, monkeypatch):
    if name != "packaged":  # building each network takes long, and other tests do it
        monkeypatch.setattr("minica.experiments.plans._rehearse", lambda *arguments: None)
    plan = read_plan(CONFIGS / f"{name}.toml")
    assert (len(plan.cells), sum(len(cell.points) for cell in plan.cells)) == (cells, points)
    assert len(plan.cells) * len(plan.seeds) == finals
    assert name != "quickstart" or [len(cell.seeds) for cell in plan.cells] == [5, 5, 5, 5, 3]
    if said := re.search(r"# ([\d,]+) tuning runs and ([\d,]+) final ones", (CONFIGS / f"{name}.toml").read_text()):
        assert [int(number.replace(",", "")) for number in said.groups()] == [points * len(plan.tuning_seeds), finals]
    if name.startswith("table"):
        for cell in plan.cells:  # Table 8
            assert cell.grid["lr"] == [1e-3, 5e-4, 1e-4, 5e-5, 1e-5] and cell.grid["weight_decay"] == [1e-2, 1e-3, 1e-4, 0]
            assert all((point["epochs"], point["warmup"]) == (100, 0.1) for point in cell.points)


@pytest.mark.parametrize("name", KNOBS)
def test_the_knobs_have_the_rate_of_one_of_them(name, monkeypatch):
    """First the tuned ones; then every setting of the grid, at the rate that validation chose for "gamma 4, K 3"."""
    monkeypatch.setattr("minica.experiments.plans._rehearse", lambda *arguments: None)
    plan, found = read_plan(CONFIGS / f"{name}.toml"), {}
    (leader,) = [cell for cell in plan.cells if cell.method == "gamma 4, K 3"]
    followers = [cell for cell in plan.cells if cell.rate_of]
    assert {cell.rate_of for cell in followers} == {leader.method} and len(followers) in (6, 15)
    assert not any(known_points(cell, found, plan) for cell in followers), "they wait for the rate"
    while todo := pending(plan, found):
        for key, job in todo.items():
            score = {"accuracy": 0.5 + 0.1 * (job["config"]["lr"] == leader.grid["lr"][1])}
            found[key] = {"config": job["config"], "trainable": 1, "val": score, "test": score}
    for cell in followers:
        assert [job["config"]["seed"] for job in final_jobs(cell, found, plan)] == plan.seeds
        assert {job["config"]["lr"] for job in final_jobs(cell, found, plan)} == {leader.grid["lr"][1]}
    assert is_complete(plan, found)
    said = re.search(r"(\d+) runs of", (CONFIGS / f"{name}.toml").read_text())
    assert int(said[1]) == len(found)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs = 1", "epoch = 1", "unknown key 'epoch'; the keys are backbones, tasks"),
        ("epochs = 1", "", "'epochs' is missing"),
        ("epochs = 1", "epochs = 0", "epochs must be a whole number from 1, got 0"),
        ("epochs = 1", "epochs = 'ten'", "epochs must be a whole number from 1, got 'ten'"),
        ("seeds = [1]", "seeds = [1, 2.5]", r"seeds must be whole numbers from 0, got \[1, 2\.5\]"),
        ("seeds = [1]", "seeds = []", "'seeds' is missing"),
        ("seeds = [1]", "seeds = [1]\nmetric = 'loss'", "metric is 'loss'; choose one of accuracy, balanced_"),
        ("seeds = [1]", "seeds = [1]\ncache = 'yes'", "cache must be true or false, got 'yes'"),
        ("seeds = [1]", "seeds = [1]\nwrong = 1", "wrong must be true or false, got 1"),
        ("seeds = [1]", "seeds = [1]\nphases = 'none'", "phases must be true or false, got 'none'"),
        ("seeds = [1]", "seeds = [1]\nfinalists = 0", "finalists must be a whole number from 1, got 0"),
        ("seeds = [1]", "seeds = [1]\nfinalists = 2", "finalists go on to further tuning_seeds, but 1 is the only one"),
        ("seeds = [1]", "seeds = [1]\ncontrol = true", "unknown key 'control'"),
        ('"linear"', '"linear", control = 1', r"control in \[methods.LP\] must be true or false, got 1"),
        ('"linear"', '"linear", seeds = [-1]', r"seeds in \[methods.LP\] must be whole numbers from 0, got \[-1\]"),
        ("seeds = [1]", "seeds = [1]\ntuning_seeds = [0, -1]", r"tuning_seeds must be whole numbers from 0, got \[0, -1\]"),
        ("seeds = [1]", "seeds = [1]\nnormalization = 0.5", "normalization is 0.5; choose one of backbone, imagenet"),
        ("seeds = [1]", "seeds = [1]\nwarmup = 10", "warmup is the part of all steps that warms up, from 0 to 1, got 10"),
        ("solar-cells", "lunar-cells", r"\[\[tasks\]\]: there is no data set 'lunar-cells', and no such folder"),
        ("lr = [1e-2, 1e37]", "lr = [1e-2, -1]", "lr must be numbers from 0"),
        ("lr = [1e-2, 1e37]", "", r"'lr' is missing: give it once for all methods, or in \[methods.LP\] too"),
        ("train_size", "trainsize", r"\[\[tasks\]\]: unknown key 'trainsize'; the keys are data, task, train_size"),
        ("data =", "task =", "cannot be read as TOML"),
        ("train_size = [32, 5000]", "labels = 0", r"labels in \[\[tasks\]\] must be a whole number from 1, got 0"),
        ("train_size = [32, 5000]", "epochs = [2]", r"epochs in \[\[tasks\]\] must be a whole number from 1, got \[2\]"),
        (
            "train_size",
            "tuned = { labels = 9 }, train_size",
            r"tuned in \[\[tasks\]\] must be a table with other values for some",
        ),
        (
            "train_size",
            "tuned = 9, train_size",
            r"tuned in \[\[tasks\]\] must be a table .* for some of task, train_size; got 9",
        ),
        ("size = 32", "size = 32 pixels", "cannot be read as TOML"),
        ('"tf_efficientnet_lite0"', "[18, 50]", r"backbones must be names, such as \"resnet50\"; got \[18, 50\]"),
        ("tf_efficientnet_lite0", "efficientnet_light", r"\[methods.LP\] on efficientnet_light: unknown backbone"),
        ('method = "linear"', 'method = "vera"', r"\[methods.LP\] on tf_efficientnet_lite0: unknown method 'vera'"),
        ('method = "linear"', 'scheme = "x"', r"\[methods.LP\].*'method' is missing"),
        ('"linear"', '"linear", compression = 4', "'linear' takes no options; got compression"),
        ('{ method = "linear" }', '"linear"', "methods must be tables"),
        ('"linear"', '"linear", lr = "fast"', r"lr in \[methods.LP\] must be numbers from 0, got 'fast'"),
        (
            '"linear"',
            '"linear", rate_of = "LP"',
            r"rate_of in \[methods.LP\] must name another method, one that is tuned, got 'LP'",
        ),
        (
            '"linear" }',
            '"linear" }, FT = { method = "full", rate_of = "LP", lr = 1e-3 }',
            r"\[methods.FT\] has the rate and the decay of 'LP'; leave out 'lr'",
        ),
        (
            '"linear" }',
            '"linear" }, FT = { method = "full", lr = 1e-3 }',
            r"no method may be tuned less than another, but the pairs .* {'LP': 2, 'FT': 1}",
        ),
    ],
)
def test_what_a_config_may_not_say(old, new, said, tmp_path):
    path = tmp_path / "my.toml"
    assert old in TWO_TASKS
    path.write_text(TWO_TASKS.replace(old, new))
    with pytest.raises(ValueError, match=rf"my\.toml.*{said}") as refused:
        read_plan(path)
    assert "\n" not in str(refused.value)


def test_tasks_that_share_their_tuning(tmp_path):
    """Rates are chosen at 32 labels; the final runs have 24 and 40, drawn anew by each seed from training and validation."""
    shared = "tuned = { labels = 32, epochs = 1 } }"
    tasks = [f'{{ data = "solar-cells", labels = {n}, epochs = {epochs}, {shared}' for n, epochs in ((24, 3), (40, 2))]
    text = (
        re.sub(r"tasks = .*", f"tasks = [{', '.join(tasks)}]", TWO_TASKS).replace("1e37", "1e-3").replace("= [1]", "= [1, 2]")
    )
    (tmp_path / "shared.toml").write_text(text)
    plan = read_plan(tmp_path / "shared.toml")
    assert [cell.task for cell in plan.cells] == ["solar-cells, labels 24", "solar-cells, labels 40"]
    tuning = known_jobs(plan, {})
    assert [(job["config"]["labels"], job["config"]["lr"]) for job in tuning.values()] == [(32, 1e-2), (32, 1e-3)]
    scores = dict(zip(tuning, (0.5, 0.75), strict=True))
    found = {key: tuning[key] | {"val": {"accuracy": score}} for key, score in scores.items()}
    finals = [job["config"] for key, job in known_jobs(plan, found).items() if key not in found]
    assert [(run["labels"], run["epochs"], run["lr"], run["phase"], run["seed"]) for run in finals] == [
        (24, 3, 1e-3, "final", 1),
        (24, 3, 1e-3, "final", 2),
        (40, 2, 1e-3, "final", 1),
        (40, 2, 1e-3, "final", 2),
    ]
    one, other = (load_task(run) for run in finals[:2])
    assert len(one.final) == 24 and len(one.train) == 1574 and len(one.test) == 656
    assert not torch.equal(one.final.images, other.final.images)
    assert one.final.labels.bincount().tolist() == other.final.labels.bincount().tolist() == [16, 8]
    pool = {image.numpy().tobytes() for image in torch.cat([one.train.images, one.val.images])}
    assert all(image.numpy().tobytes() in pool for image in one.final.images)
    assert len(load_task(tuning[next(iter(tuning))]["config"]).train) == 32
    assert len(load_task(finals[0] | {"labels": 1968}).final) == 1968
    with pytest.raises(ValueError, match="labels must be at most 1,968, all images there are to train on; got 1969"):
        load_task(finals[0] | {"labels": 1969})
    (tmp_path / "shared.toml").write_text(f"phases = false\n{text}")
    with pytest.raises(ValueError, match="with phases = false there are no runs that only tune; leave tuned out"):
        read_plan(tmp_path / "shared.toml")


def test_a_cached_sweep(tmp_path):
    """Without augmentation the frozen prefix may run once, with the same table."""
    plain = TWO_TASKS.replace("[32, 5000]", "32, augment = 'none'").replace(", 1e37", "")
    for name, text in (("plain", plain), ("cached", plain.replace("size = 32", "size = 32\ncache = true", 1))):
        (tmp_path / f"{name}.toml").write_text(text)
        assert sweep(tmp_path / f"{name}.toml", tmp_path / name)
    plain, cached = (
        sorted(experiments.read_records(tmp_path / name).values(), key=lambda record: record["config"]["phase"])
        for name in ("plain", "cached")
    )
    for one, other in zip(plain, cached, strict=True):
        assert other["config"] == one["config"] | {"cache": True}
        assert other["train_loss"] == pytest.approx(one["train_loss"], abs=1e-3)


@pytest.mark.parametrize(
    ("layout", "network", "metric"),
    [
        ("coco", 'name = "faster_rcnn", channels = 8, min_size = 64, max_size = 64, box_batch_size_per_image = 8', "ap"),
        ("coco", 'name = "retinanet", channels = 8, min_size = 64, max_size = 64', "ap50"),
        ("ade20k", 'name = "upernet", channels = 8, auxiliary_channels = 4', "miou"),
    ],
)
def test_detectors_and_segmentation_networks(layout, network, metric, tmp_path):
    draw_scenes(tmp_path, images={"train": 4, "val": 2, "test": 2})
    text = re.sub(r'data = "[^"]*".*', f"data = {str(tmp_path / layout)!r}", DENSE)
    (tmp_path / "dense.toml").write_text(f"metric = {metric!r}\nnetwork = {{ {network} }}\n{text}")
    assert sweep(tmp_path / "dense.toml", tmp_path / "records")
    records = [*experiments.read_records(tmp_path / "records").values()]
    assert len(records) == 2 and all(0 <= record["test"][metric] <= 1 for record in records)
    adapted, full = sorted(records, key=lambda record: record["trainable"])
    assert adapted["config"]["method"] == "conv_adapter" and full["config"]["options"] == {"running_stats": False}
    with pytest.raises(ValueError, match="network must be such as .* name one of faster_rcnn, retinanet, upernet"):
        (tmp_path / "dense.toml").write_text(f'network = {{ name = "yolo" }}\n{text}')
        read_plan(tmp_path / "dense.toml")


def test_tuned_over_two_seeds_into_one_file(tmp_path, capsys):
    """The choice is the best mean over the tuning seeds; a point with a run that diverged has lost."""
    text = TWO_TASKS.replace("[32, 5000]", "32").replace("seeds = [1]", "seeds = [4]\ntuning_seeds = [2, 3]\nwrong = true")
    (tmp_path / "two.toml").write_text(text.replace("lr = [1e-2, 1e37]", "lr = [1e-2, 1e-3, 1e37]"))
    assert sweep(tmp_path / "two.toml", tmp_path / "new" / "records.json")
    assert "| 3 of 3 | lr " in capsys.readouterr().out
    records = experiments.read_records(tmp_path / "new" / "records.json")
    assert [*records.values()] == json.loads((tmp_path / "new" / "records.json").read_text()) and len(records) == 7
    means = {}
    for record in records.values():
        if "val" in record:
            means.setdefault(record["config"]["lr"], []).append(record["val"]["accuracy"])
    (final,) = (record for record in records.values() if "test" in record)
    best = max(means, key=lambda lr: sum(means[lr]))
    assert all(len(scores) == 2 for scores in means.values()) and 1e37 not in means
    assert final["config"]["lr"] == best and final["config"]["seed"] == 4
    assert final["selection"]["seeds"] == [2, 3]
    assert final["selection"]["val"] == pytest.approx(sum(means[best]) / 2, abs=1e-12)
    assert final["test"]["accuracy"] == pytest.approx(1 - len(final["test"]["wrong"]) / final["test"]["n"])
    assert sweep(tmp_path / "two.toml", tmp_path / "new" / "records.json")
    assert "7 trials recorded" in (shown := capsys.readouterr().out) and "0 to run now" in shown


ONE_PHASE = """
size = 32
epochs = 1
batch_size = 16
seeds = [0, 1, 2]
tuning_seeds = [0, 1]
finalists = 2
phases = false
backbones = "tf_efficientnet_lite0"
weight_decay = 0
tasks = { data = "solar-cells", task = "defect", train_size = 32 }

[methods.LP]
method = "linear"
lr = [1e37, 1e-2, 1e-3, 1e-4]

[methods."LP, small rate"]
control = true
method = "linear"
lr = 1e-5
seeds = [0, 1]
"""


def test_tuned_step_by_step(tmp_path, monkeypatch):
    """A rate beyond the edge, then a decay, then an option, each at the best point so far."""
    text = (
        TWO_TASKS.replace("[32, 5000]", "32")
        .replace("[1e-2, 1e37]", "[1e-3, 3e-3]")
        .replace("weight_decay = 0", "weight_decay = 0.0")
    )
    text = text.replace("seeds = [1]", "seeds = [1, 2]\nwiden = true\nthen = { weight_decay = [0.01] }")
    text = text.replace(
        '{ method = "linear" }', '{ method = "conv_adapter", scheme = "residual_parallel", then = { compression = [8] } }'
    )
    (tmp_path / "steps.toml").write_text(text)
    seen = []

    def pretend(config, progress=True):
        """Better the higher the rate, without decay, and at compression 8."""
        seen.append(
            (config["lr"], config["weight_decay"], config["options"].get("compression"), config["phase"], config["seed"])
        )
        score = min(1, 50 * config["lr"]) - config["weight_decay"] + 0.01 * (config["options"].get("compression", 4) == 8)
        scores = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "auroc"), score / 2) | {"n": 100}
        return {"config": config, "trainable": 1, "seconds": 1.0, ("val" if config["phase"] == "tune" else "test"): scores}

    monkeypatch.setattr("minica.experiments.sweeps.run", pretend)
    assert sweep(tmp_path / "steps.toml", tmp_path / "records")
    assert seen == [
        (1e-3, 0.0, None, "tune", 1),
        (3e-3, 0.0, None, "tune", 1),
        (9e-3, 0.0, None, "tune", 1),
        (9e-3, 0.01, None, "tune", 1),
        (9e-3, 0.0, 8, "tune", 1),
        (9e-3, 0.0, 8, "final", 1),
        (9e-3, 0.0, 8, "final", 2),
    ]
    assert all(
        r["selection"]["tried"] == 5 for r in experiments.read_records(tmp_path / "records").values() if "selection" in r
    )
    plan, found = read_plan(tmp_path / "steps.toml", rehearse=False), experiments.read_records(tmp_path / "records")
    assert at_edge(plan.cells[0], found, plan) == ["lr"], "still the highest of those tried"
    for shown in (sweep_table(plan, found), grid_table(plan, found)):
        assert shown.count("\\*") == 2 and shown.endswith("the lowest or the highest of those tried.")
    (tmp_path / "wide.toml").write_text(text.replace("[1e-3, 3e-3]", "[1e-3, 3e-3, 9e-3, 2.7e-2]"))
    plan = read_plan(tmp_path / "wide.toml", rehearse=False)
    while todo := pending(plan, found):
        found |= {key: pretend(job["config"]) for key, job in todo.items()}
    assert chosen(plan.cells[0], found, plan)[0]["lr"] == 2.7e-2 and not at_edge(plan.cells[0], found, plan), "8.1e-2 was tried"
    for listed, edges in (("[8]", ["compression"]), ("[8, 16]", []), ("[2, 8]", ["compression"])):
        explicit = f'scheme = "residual_parallel", compression = 4, then = {{ compression = {listed} }}'
        wide = (tmp_path / "wide.toml").read_text()
        (tmp_path / "explicit.toml").write_text(
            wide.replace('scheme = "residual_parallel", then = { compression = [8] }', explicit)
        )
        plan, found = read_plan(tmp_path / "explicit.toml", rehearse=False), {}
        while todo := pending(plan, found):
            found |= {key: pretend(job["config"]) for key, job in todo.items()}
        assert at_edge(plan.cells[0], found, plan) == edges

    # Final runs that have no score are counted, and splits of several sizes named.
    finals = [key for key, record in found.items() if record["config"]["phase"] == "final"]
    first, second = (found[key]["test"] for key in finals)
    first["n"], second["n"] = 90, 120
    assert sweep_table(plan, found).count("of 90 to 120 images") == 1
    whole, left = dict(found), dict(found)
    del left[finals[0]]
    assert "-" in grid_table(plan, left) and "failed" not in sweep_table(plan, left)
    for key, said in zip(finals, ("1 of 2 failed", "| 2 of 2 failed |"), strict=True):
        whole[key] = {"config": found[key]["config"], "error": "TrainingDiverged: at step 3"}
        assert said in sweep_table(plan, whole) and said.strip("| ") in grid_table(plan, whole)
    for old, new, said in (
        (
            "then = { weight_decay = [0.01] }",
            "then = { compression = [2] }",
            "then has 'compression'; give options to the method",
        ),
        ("then = { compression = [8] }", "then = { lr = [1.0] }", r"then in \[methods.LP\] has 'lr'; give it to all methods"),
        ("then = { weight_decay = [0.01] }", "then = { weight_decay = 0.01 }", "then must be lists by key"),
        ("then = { compression = [8] }", "then = { compression = [0] }", "compression"),
    ):
        (tmp_path / "wrong.toml").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=said):
            read_plan(tmp_path / "wrong.toml")


def test_finalists_and_runs_of_one_phase(tmp_path, capsys):
    """Four rates with the first seed, the best two with the second, the best mean with all; a control has one rate."""
    (tmp_path / "one.toml").write_text(ONE_PHASE)
    assert sweep(tmp_path / "one.toml", tmp_path / "records.json")
    records = experiments.read_records(tmp_path / "records.json").values()
    by_rate = {}
    for record in records:
        assert "phase" not in record["config"] and "selection" not in record
        assert "error" in record or {"val", "test"} <= record.keys()
        by_rate.setdefault(record["config"]["lr"], {})[record["config"]["seed"]] = record.get("val", {}).get("accuracy", 0)
    assert by_rate.pop(1e-5).keys() == {0, 1}
    first = sorted((1e-2, 1e-3, 1e-4), key=lambda lr: -by_rate[lr][0])  # of equals, the first in the grid's order
    assert by_rate[1e37].keys() == by_rate[first[2]].keys() == {0}, "what has lost is not tried again"
    best, second = sorted(first[:2], key=lambda lr: (-by_rate[lr][0] - by_rate[lr][1], first.index(lr)))
    assert (by_rate[best].keys(), by_rate[second].keys()) == ({0, 1, 2}, {0, 1})
    row, control = table(capsys.readouterr().out)[2:]
    assert f"| 4 of 4 | lr {best} |" in row and "| LP, small rate | 1 of 1 |  |" in control
    assert sweep(tmp_path / "one.toml", tmp_path / "records.json")
    assert f"{len(records)} trials recorded" in (shown := capsys.readouterr().out) and "0 to run now" in shown


def test_the_published_normalization(tmp_path):
    config = {"data": "shapes", "size": 32, "backbone": "tf_efficientnet_lite0", "method": "linear", "options": {}, "seed": 0}
    _, task = experiments.prepare(config)
    _, published = experiments.prepare(config | {"normalization": "imagenet"})
    assert (task.mean, task.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (published.mean, published.std) == (data.IMAGENET["mean"], data.IMAGENET["std"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"val": None}, "has no scores 'val'"),
        ({"val": {"accuracy": 1e9}}, "has val accuracy 1000000000.0, which must be a number from 0 to 1"),
        ({"val": {"accuracy": "0.5"}}, "has val accuracy '0.5'"),
        ({"val": {"accuracy": float("nan")}}, "has val accuracy nan"),
        ({"config": {"phase": "last"}}, "has the phase 'last'"),
    ],
)
@pytest.mark.parametrize("place", ["records", "records.json"])
def test_a_record_with_impossible_scores_is_named(change, said, place, tmp_path):
    scores = dict(accuracy=0.5, balanced_accuracy=0.5, macro_f1=0.5, auroc=float("nan"))
    good = {"config": {"lr": 0.1, "phase": "tune"}, "trainable": 1, "val": scores}
    experiments.add_record(tmp_path / place, good)
    assert len(experiments.read_records(tmp_path / place)) == 1
    bad = {key: {**good[key], **value} if value else value for key, value in change.items()}
    experiments.add_record(tmp_path / place, good | bad | {"config": good["config"] | bad.get("config", {}) | {"lr": 0.2}})
    (tmp_path / "two.toml").write_text(TWO_TASKS)
    for read in (experiments.read_records, lambda place: sweep(tmp_path / "two.toml", place)):
        with pytest.raises(ValueError, match=rf'records.*\.json: the record \w+ of .*"lr": 0.2.* {re.escape(said)}.*remove it'):
            read(tmp_path / place)
    experiments.add_record(tmp_path / "failed", {"config": {"phase": "tune"}, "error": "it failed"})
    assert experiments.read_records(tmp_path / "failed")


def test_no_config_and_a_strange_record(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml cannot be read as TOML: No such file"):
        read_plan(tmp_path / "none.toml")
    (tmp_path / "two.toml").write_text(TWO_TASKS)
    (tmp_path / "mine.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"mine\.json is not the record of a trial"):
        sweep(tmp_path / "two.toml", tmp_path)


def test_final_runs_are_repeated_and_count_with_their_mean(tmp_path, monkeypatch):
    """Two seeds, three runs each; a seed counts when all of its runs are there."""
    text = (
        TWO_TASKS.replace("[32, 5000]", "32").replace("[1e-2, 1e37]", "[1e-2, 1e-3]").replace("seeds = [1]", "seeds = [1, 2]")
    )
    text = text.replace('{ method = "linear" }', '{ method = "linear", repeats = 3 }')
    (tmp_path / "often.toml").write_text(text)
    plan, found = read_plan(tmp_path / "often.toml", rehearse=False), {}
    (cell,) = plan.cells
    while todo := pending(plan, found):
        for key, job in todo.items():
            accuracy = 0.5 + 0.1 * job["config"].get("repeat", 0) + 0.01 * job["config"]["seed"]
            scores = {"accuracy": accuracy, "n": 10, "constant": False}
            found[key] = job | {"trainable": 1, ("val" if job["config"]["phase"] == "tune" else "test"): scores}
    drawn = [(job["config"]["seed"], job["config"].get("repeat")) for job in final_jobs(cell, found, plan)]
    assert drawn == [(1, None), (1, 1), (1, 2), (2, None), (2, 1), (2, 2)] and is_complete(plan, found)
    first, second = final_records(cell, found, plan)
    assert (first["test"]["accuracy"], second["test"]["accuracy"]) == pytest.approx((0.61, 0.62))
    assert [score["accuracy"] for score in first["repeats"]] == pytest.approx([0.51, 0.61, 0.71]) and first["test"]["n"] == 10
    assert not first["test"]["constant"]
    next(iter(reversed(found.values())))["test"]["constant"] = True
    assert [one["test"]["constant"] for one in final_records(cell, found, plan)] == [False, True], (
        "one that failed is not hidden"
    )
    found.popitem()
    assert len(final_records(cell, found, plan)) == 1 and not is_complete(plan, found)
    (tmp_path / "never.toml").write_text(text.replace("repeats = 3", "repeats = 0"))
    with pytest.raises(ValueError, match=r"repeats in \[methods.LP\] must be a whole number from 1, got 0"):
        read_plan(tmp_path / "never.toml", rehearse=False)


def test_a_repeated_run_starts_from_other_weights(monkeypatch):
    config = dict(data="shapes", task="position", size=32, train_size=16, backbone="tf_efficientnet_lite0", method="linear")
    config |= dict(options={}, seed=3)
    (once, task), (again, same), (other, _) = (runs.prepare(config | extra) for extra in ({}, {}, {"repeat": 1}))
    assert torch.equal(once.classifier.weight, again.classifier.weight)
    assert not torch.equal(once.classifier.weight, other.classifier.weight)
    assert torch.equal(task.train.images, same.train.images)
