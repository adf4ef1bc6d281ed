"""The training loop through its public face: records, reproducibility, resumption, several processes, errors.

Run as a script it is a child of the tests: it trains under SIGKILL, and as two processes.
"""

import copy
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from nets import same, snapshot
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import minica.training
from minica.tasks.classification import MONITORS, metrics
from minica.training import TrainingDiverged, evaluate, fit, learning_rate, parameter_groups, predict

SIZE = 12


class Pictures(Dataset):
    """Noise whose colour tells the label; ``noisy`` adds noise from all three of Python's usual generators."""

    def __init__(self, n: int, classes: int = 3, noisy: bool = False, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(n) % classes
        self.images = torch.randn(n, 3, SIZE, SIZE, generator=draw)
        self.images += 2 * F.one_hot(self.labels % 3, 3)[:, :, None, None]
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image = self.images[i]
        if self.noisy:
            image = image + 0.1 * torch.randn(3, 1, 1) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return image, int(self.labels[i])


class Endless(IterableDataset):
    def __iter__(self):
        return iter(Pictures(24))


def tiny(classes: int = 3, *, norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(16, classes),
    )


def train(model, data=None, val=None, **options):
    return fit(model, data or Pictures(24), val, **{"epochs": 2, "batch_size": 8, "progress": False, **options})


def without_seconds(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def checkpoints(folder):
    return sorted(path.name for path in folder.iterdir())


# What it does ---------------------------------------------------------------------------------------------------------


def test_it_learns_and_keeps_records():
    model, data, held_out = tiny(), Pictures(60), Pictures(30, seed=1)
    before = evaluate(model, held_out)
    history = train(model, data, held_out, epochs=6, lr=2e-2, batch_size=10)
    after = evaluate(model, held_out)
    assert after["accuracy"] > 0.9 > 0.7 > before["accuracy"]
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["train_loss"] < history[0]["train_loss"] and all(record["seconds"] > 0 for record in history)
    assert {key: history[-1][f"val_{key}"] for key in after} == after  # what the records say is what evaluate finds
    assert json.loads(json.dumps(history)) == history
    assert not model.training and all(weight.grad is None for weight in model.parameters())
    # Nothing of the machinery stays on the model: it has a fresh one's layout, so its outputs keep their last bits.
    fresh = tiny()
    fresh.load_state_dict(model.state_dict())
    assert [weight.stride() for weight in model.parameters()] == [weight.stride() for weight in fresh.parameters()]
    assert torch.equal(model(data.images), fresh.eval()(data.images))
    assert model.__dict__.keys() == fresh.__dict__.keys()


def test_learning_rate():
    history = train(tiny(), Pictures(8), epochs=20, lr=0.5, warmup=0.25)  # one step an epoch shows them all
    cosine = [0.25 * (1 + math.cos(math.pi * k / 15)) for k in range(15)]
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, *cosine]
    assert [record["lr"] for record in history] == pytest.approx(expected)
    assert learning_rate(0, 100, 1.0, warmup=0) == 1 and learning_rate(99, 100, 1.0, warmup=1) == 1
    assert 0 < learning_rate(99, 100, 1.0) < 1e-3


def test_first_step_is_adamw():
    model, data = tiny(norm=False), Pictures(8)
    twin = copy.deepcopy(model)
    train(model, data, epochs=1, lr=1e-2, weight_decay=0.5, warmup=0)
    F.cross_entropy(twin(data.images), data.labels).backward()
    torch.optim.AdamW(parameter_groups(twin, 0.5), lr=1e-2).step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_weight_decay_spares_gains():
    model = tiny()
    model.alpha = nn.Parameter(torch.ones(8, 1, 1))
    model.gain = nn.Parameter(torch.tensor(1.0))
    model[0].weight.requires_grad_(False)
    names = {id(weight): name for name, weight in model.named_parameters()}
    decayed, plain = ({names[id(weight)] for weight in group["params"]} for group in parameter_groups(model, 0.3))
    assert decayed == {"3.weight", "4.weight", "9.weight"}
    assert plain == {name for name in names.values() if name not in decayed} - {"0.weight"}
    assert [group["weight_decay"] for group in parameter_groups(model, 0.3)] == [0.3, 0.0]


def test_every_image_is_seen_once_an_epoch():
    class Watched(Pictures):
        seen: list[int] = []

        def __getitem__(self, i):
            self.seen.append(i)
            return super().__getitem__(i)

    train(tiny(), Watched(5), epochs=1, batch_size=32)  # fewer than one batch: nothing is dropped
    assert sorted(Watched.seen) == [0, 1, 2, 3, 4]
    Watched.seen.clear()
    train(tiny(), Watched(21), epochs=2, batch_size=8)
    first, second = Watched.seen[:16], Watched.seen[-16:]
    assert len(set(first)) == len(set(second)) == 16 and first != second


@pytest.mark.parametrize("frozen", ["everything but the head", "everything but one norm"])
def test_frozen_stays_frozen(frozen):
    model = timm.create_model("test_resnet", num_classes=3)
    trains = ("fc.",) if frozen == "everything but the head" else ("fc.", "layer3.0.bn3.")
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(trains))
    before = snapshot(model)
    train(model, epochs=2, lr=0.1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(trains)}  # the trained norm's statistics included


def test_bf16():
    outputs = []
    model, data = tiny(), Pictures(60)
    model[9].register_forward_hook(lambda module, args, out: outputs.append(out.dtype))
    history = train(model, data, Pictures(9), epochs=4, lr=2e-2, precision="bf16")
    assert set(outputs) == {torch.bfloat16} and history[-1]["train_loss"] < history[0]["train_loss"]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    train(model, data, precision="no")  # Accelerate alone would refuse a second precision in one process
    assert outputs[-1] == torch.float32 and predict(model, data)[0].dtype == torch.float32


def test_accelerators_of_the_caller_survive():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    try:
        train(tiny(), epochs=1)
        assert mine.mixed_precision == "bf16" and mine.device.type == "cpu" and mine.gradient_accumulation_steps == 3
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    train(tiny(), epochs=1)
    assert not PartialState._shared_state  # notebook_launcher, for one, refuses to start when there is something


def test_progress_bar(capsys):
    train(tiny(), epochs=1)
    assert capsys.readouterr() == ("", "")
    train(tiny(), epochs=2, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 2/2, loss" in shown and "6/6" in shown


# Reproducible and resumable -------------------------------------------------------------------------------------------


def recipe(folder=None, **options):
    """A run in which everything random takes part: shuffle, augmentation, dropout, batch statistics."""
    model = tiny(dropout=0.3)
    history = train(model, Pictures(40, noisy=True), epochs=6, lr=1e-2, seed=5, folder=folder, **options)
    return model, history


def test_same_seed_same_bits_and_the_callers_randomness_is_left_alone():
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws(), draws()
    (first, history), (second, again) = recipe(), recipe(workers=0)
    assert same(first.state_dict(), second.state_dict()) and without_seconds(history) == without_seconds(again)
    model, data = tiny(), Pictures(24, noisy=True)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    got = [draws()]
    train(model, data, Pictures(9), epochs=1)
    evaluate(model, Pictures(9))
    assert (*got, draws()) == expected
    other = tiny(dropout=0.3)
    train(other, Pictures(40, noisy=True), epochs=6, lr=1e-2, seed=6)
    assert not same(first.state_dict(), other.state_dict())


def test_workers_are_reproducible():
    a, b = tiny(), tiny()
    for model in (a, b):
        torch.manual_seed(random.randrange(1000))
        train(model, Pictures(16, noisy=True), workers=2)
    assert same(a.state_dict(), b.state_dict())


def test_a_finished_run_returns_at_once(tmp_path):
    model, history = recipe(tmp_path)
    assert checkpoints(tmp_path) == ["checkpoint-00005.pt", "checkpoint-00006.pt"]

    class Untouchable(Pictures):
        def __getitem__(self, i):
            raise AssertionError("nothing is left to train")

    again = tiny(dropout=0.3)
    found = train(again, Untouchable(40), epochs=6, lr=1e-2, seed=5, folder=tmp_path)
    assert found == history and same(again.state_dict(), model.state_dict())
    plain, untouched = recipe()
    assert same(plain.state_dict(), model.state_dict())  # writing checkpoints changes nothing


def test_only_what_trains_is_in_a_checkpoint(tmp_path):
    model = tiny()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    train(model, folder=tmp_path)
    saved = torch.load(tmp_path / "checkpoint-00002.pt", weights_only=True)
    assert saved["model"].keys() == {f"{layer}.{kind}" for layer in (3, 4, 9) for kind in ("weight", "bias")}
    train(tiny(), folder=tmp_path / "numpy", lr=np.float64(0.01), epochs=np.int64(2))
    train(tiny(), folder=tmp_path / "numpy", lr=0.01)  # the same run


def test_a_crash_while_writing_loses_nothing(tmp_path, monkeypatch):
    def crash(source, target):
        if "00003" in str(target):
            raise OSError("the disk is full")
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk is full"):
        recipe(tmp_path)
    assert "checkpoint-00002.pt" in checkpoints(tmp_path) and "checkpoint-00003.pt" not in checkpoints(tmp_path)
    monkeypatch.undo()
    model, history = recipe(tmp_path)
    plain, expected = recipe()
    assert same(model.state_dict(), plain.state_dict()) and without_seconds(history) == without_seconds(expected)
    assert checkpoints(tmp_path) == ["checkpoint-00005.pt", "checkpoint-00006.pt"]


def test_a_damaged_checkpoint(tmp_path):
    model, _ = recipe(tmp_path)
    newest = tmp_path / "checkpoint-00006.pt"
    whole = newest.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(model[9].weight.detach().numpy().tobytes()) + 5] ^= 1  # one bit of one weight
    for damage in (whole[: len(whole) // 2], b"", b"no checkpoint", bytes(flipped)):
        newest.write_bytes(damage)
        with pytest.raises(ValueError, match=r"t-00006\.pt is damaged.*delete it to go on from checkpoint-00005\.pt"):
            recipe(tmp_path)
    newest.unlink()
    resumed, _ = recipe(tmp_path)
    assert same(resumed.state_dict(), model.state_dict())
    (tmp_path / "checkpoint-00005.pt").unlink()
    newest.write_bytes(b"")
    with pytest.raises(ValueError, match="delete it to start over"):
        recipe(tmp_path)


def test_checkpoints_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"run": Trap()}, tmp_path / "checkpoint-00001.pt")
    with pytest.raises(ValueError, match="no checkpoint of fit"):
        recipe(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_another_run_is_refused(tmp_path):
    train(tiny(), folder=tmp_path)
    kept = (tmp_path / "checkpoint-00002.pt").read_bytes()
    other_data = Pictures(24, seed=1)
    bigger, head_only, other_backbone = tiny(4), tiny(), tiny()
    head_only[0].requires_grad_(False)
    for model, options, difference in (
        (tiny(), {"lr": 0.5}, r"lr 0\.001 \(here 0\.5\)"),
        (tiny(), {"epochs": 3, "warmup": 0.0}, r"epochs 2 \(here 3\), warmup 0\.5 \(here 0\.0\)"),
        (tiny(), {"val": Pictures(6)}, r"validation False \(here True\)"),
        (tiny(), {"data": Pictures(25)}, r"training images 24 \(here 25\)"),
        (tiny(), {"data": other_data}, r"training data \w+ \(here \w+\)"),
        (bigger, {}, r"shape of 9\.weight \(3, 16\) \(here \(4, 16\)\)"),
        (head_only, {}, r"frozen weights .*shape of 0\.weight \(8, 3, 3, 3\) \(here none\)"),
    ):
        before = snapshot(model)
        with pytest.raises(ValueError, match=rf"holds checkpoints of another run, with .*{difference}"):
            train(model, folder=tmp_path, **options)
        assert same(before, model.state_dict())
    for model in (head_only, other_backbone):
        model.requires_grad_(False)[9].requires_grad_(True)
    train(head_only, folder=tmp_path / "frozen")
    with torch.no_grad():
        other_backbone[3].bias += 1
    with pytest.raises(ValueError, match=r"frozen weights \w+ \(here \w+\); choose another folder"):
        train(other_backbone, folder=tmp_path / "frozen")
    assert (tmp_path / "checkpoint-00002.pt").read_bytes() == kept


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """A folder with what the children left; importing is their slowest part, so one script forks them all."""
    if not hasattr(os, "fork"):
        pytest.skip("the children are forked")
    folder = tmp_path_factory.mktemp("children")
    paths = [str(Path(minica.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, __file__, str(folder)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr[-3000:]
    return folder


def test_killed_at_any_moment_and_resumed(children):
    assert json.loads((children / "kills.json").read_text()) >= 4
    calm, disturbed = (torch.load(children / f"{name}.pt", weights_only=True) for name in ("calm", "disturbed"))
    assert same(calm["model"], disturbed["model"]) and calm["history"] == disturbed["history"]
    assert len(calm["history"]) == 12


def child_killed(folder: Path) -> None:
    """Train once in peace, then again under SIGKILL: in the middle of writing a checkpoint, and at random moments."""

    def start(work) -> int:
        process = os.fork()
        if not process:
            work()
            os._exit(0)
        return process

    def run(name: str, checkpoints: Path) -> None:
        model = tiny(dropout=0.3)
        data = Pictures(64, noisy=True)
        history = train(model, data, epochs=12, lr=1e-2, seed=7, folder=checkpoints)
        torch.save({"model": model.state_dict(), "history": without_seconds(history)}, folder / f"{name}.pt")

    def die_while_writing() -> None:
        def half(state, stream):
            if state["history"][-1]["epoch"] == 3:
                save(state, stream)
                stream.truncate(stream.tell() // 2)
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            save(state, stream)

        save, torch.save = torch.save, half
        run("disturbed", folder / "b")

    torch.set_num_threads(1)
    began = time.monotonic()
    os.waitpid(start(lambda: run("calm", folder / "a")), 0)
    epoch = (time.monotonic() - began) / 12
    _, status = os.waitpid(start(die_while_writing), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL and any((folder / "b").glob(".checkpoint-00003.pt.*"))
    kills = 1
    for _ in range(5):
        newest = max((folder / "b").glob("*.pt"))
        process = start(lambda: run("disturbed", folder / "b"))
        while max((folder / "b").glob("*.pt"), default=newest) == newest:  # so that every child gets one epoch further
            time.sleep(0.002)
        time.sleep(random.uniform(0, epoch))
        os.kill(process, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(process, 0)[1])
    os.waitpid(start(lambda: run("disturbed", folder / "b")), 0)
    (folder / "kills.json").write_text(json.dumps(kills))


# Several processes ----------------------------------------------------------------------------------------------------


def test_two_processes(children):
    first, second = (torch.load(children / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in ("plain", "norm"):
        assert same(first[name], second[name])  # weights, and the norm's statistics
    assert without_seconds(first["history"]) == without_seconds(second["history"])
    assert first["batches"] == second["batches"] == [4] * 9  # half a batch each
    assert first["uneven"] == second["uneven"] == "batch_size must be a multiple of the 2 processes, got 7."
    assert checkpoints(children / "run") == ["checkpoint-00002.pt", "checkpoint-00003.pt"]

    alone = tiny(norm=False)
    history = train(alone, Pictures(24), Pictures(13, seed=1), epochs=3, lr=1e-2)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first["plain"][name], value, rtol=1e-4, atol=1e-5)
    for theirs, ours in zip(first["history"], history, strict=True):
        assert theirs["val_n"] == 13 and theirs["val_accuracy"] == ours["val_accuracy"]
        for key in ("train_loss", "val_loss", "val_auroc"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3)


def child_two(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    if not (second := os.fork()):
        process_of_two(1, shared, folder)
        os._exit(0)
    process_of_two(0, shared, folder)
    assert os.waitpid(second, 0)[1] == 0


def process_of_two(rank: int, shared: dict, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared}
    torch.set_num_threads(1)
    batches, result, save = [], {}, torch.save
    if rank:
        torch.save = None  # only the main process may write

    def count(module, args) -> None:
        if module.training:
            batches.append(len(args[0]))

    plain, norm = tiny(norm=False), tiny(dropout=0.3)
    watch = plain[0].register_forward_pre_hook(count)
    result["history"] = train(plain, Pictures(24), Pictures(13, seed=1), epochs=3, lr=1e-2, folder=folder / "run", device="cpu")
    watch.remove()
    train(norm, Pictures(24, noisy=True), lr=1e-2, device="cpu")  # a second run in the same process group
    try:
        train(plain, batch_size=7, device="cpu")
    except ValueError as error:
        result["uneven"] = str(error)
    result |= {"plain": plain.state_dict(), "norm": norm.state_dict(), "batches": batches}
    save(result, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_predict_is_the_model_in_order_and_leaves_it_as_it_was():
    model, data = tiny(dropout=0.5), Pictures(11)
    model.train()
    model[1].eval()
    modes, before = [module.training for module in model.modules()], snapshot(model)
    logits, labels = predict(model, data, batch_size=4)
    assert [module.training for module in model.modules()] == modes and same(before, model.state_dict())
    torch.testing.assert_close(logits, model.eval()(data.images).detach())
    assert torch.equal(labels, data.labels) and logits.dtype == torch.float32 and not logits.requires_grad
    from_loader, _ = predict(model, DataLoader(data, batch_size=4))
    assert torch.equal(from_loader, logits)
    channels_last = model.to(memory_format=torch.channels_last)
    strides = [weight.stride() for weight in channels_last.parameters()]
    evaluate(channels_last, data)
    assert [weight.stride() for weight in channels_last.parameters()] == strides


@pytest.mark.parametrize("classes", range(2, 60, 3))
def test_no_metric_is_above_one(classes):
    """Of answers that are all right, single precision made a macro F1 of 1.0000001, which no record may have."""
    for n in (199, 200, 777):
        labels = torch.arange(n) % classes
        found = metrics(9.0 * F.one_hot(labels, classes), labels)
        assert all(found[name] == pytest.approx(1) and found[name] <= 1 for name in MONITORS)


@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_are_scikit_learns(classes):
    import sklearn.metrics as sklearn

    draw = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (60,), generator=draw)
    logits = torch.randn(60, classes, generator=draw) + F.one_hot(labels, classes)
    found, guesses, scores = metrics(logits, labels), logits.argmax(1), logits.double().softmax(1)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, guesses))
    assert found["balanced_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(labels, guesses))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(labels, guesses, average="macro"))
    area = sklearn.roc_auc_score(labels, scores[:, 1] if classes == 2 else scores, multi_class="ovr")
    assert found["auroc"] == pytest.approx(area)
    assert found["loss"] == pytest.approx(sklearn.log_loss(labels, scores)) and found["n"] == 60


def test_metrics_over_the_classes_present():
    import sklearn.metrics as sklearn

    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([1, 3])[torch.randint(2, (40,), generator=draw)]
    logits = torch.randn(40, 5, generator=draw) + 2 * F.one_hot(labels, 5)
    found, scores = metrics(logits, labels), logits.double().softmax(1)
    areas = [sklearn.roc_auc_score(labels == c, scores[:, c]) for c in (1, 3)]
    assert found["auroc"] == pytest.approx(sum(areas) / 2) and "note" not in found
    recalls = [(logits.argmax(1) == c)[labels == c].double().mean().item() for c in (1, 3)]
    assert found["balanced_accuracy"] == pytest.approx(sum(recalls) / 2)
    alone = metrics(logits[labels == 3], labels[labels == 3])
    assert math.isnan(alone["auroc"]) and alone["note"] == "auroc is not defined: every label is 3"
    assert 0 < alone["accuracy"] <= 1 and alone["balanced_accuracy"] == pytest.approx(alone["accuracy"])


def test_confident_scores_do_not_tie():
    logits = torch.tensor([[0.0, 40.0], [0.0, 30.0], [0.0, 50.0], [0.0, 20.0]])
    assert metrics(logits, torch.tensor([1, 0, 1, 0]))["auroc"] == 1


@pytest.mark.parametrize(
    ("correct", "n", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_interval(correct, n, interval):  # method 3 in table I of Newcombe, Statistics in Medicine 17:857, 1998
    logits = torch.zeros(n, 2)
    logits[:correct, 1] = 1
    assert metrics(logits, torch.ones(n, dtype=torch.long))["accuracy_95"] == pytest.approx(interval, abs=1e-4)


# Says no clearly ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("infinite", ["loss", "weight"])
def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path, infinite):
    model, data = tiny(), Pictures(24)
    steps = []

    def spoil(module, args, out):
        if module.training:
            steps.append(1)
            if len(steps) == (8 if infinite == "loss" else 9):
                if infinite == "loss":
                    return out * math.nan
                out.register_hook(lambda gradient: gradient * math.nan)  # the loss is fine, the update is not

    model.register_forward_hook(spoil)
    what = {"loss": "loss is nan at step 8", "weight": "weight is not finite after the update at step 9"}[infinite]
    with pytest.raises(TrainingDiverged, match=rf"{what} of 12, learning rate 0\.0\d+; .*checkpoint-00002\.pt"):
        train(model, data, epochs=4, lr=0.05, folder=tmp_path)
    assert issubclass(TrainingDiverged, RuntimeError) and checkpoints(tmp_path)[-1] == "checkpoint-00002.pt"
    assert not model.training
    steps[:] = [0] * 100
    assert [record["epoch"] for record in train(model, data, epochs=4, lr=0.05, folder=tmp_path)] == [1, 2, 3, 4]


def test_divergence_by_a_real_learning_rate():
    data = Pictures(24)
    data.images[3] = math.inf
    with pytest.raises(TrainingDiverged, match="there is no checkpoint yet. Try a lower lr"):
        train(tiny(norm=False), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number from 1, got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be a whole number from 0, got -1"),
        ({"workers": -1}, "workers must be"),
        ({"lr": -1e-3}, r"lr must be a number from 0 to inf, got -0\.001"),
        ({"lr": math.nan}, "lr must be"),
        ({"weight_decay": math.inf}, "weight_decay must be"),
        ({"warmup": 1.5}, r"warmup must be a number from 0 to 1, got 1\.5"),
        ({"precision": "fp8"}, "unknown precision 'fp8'; choose one of no, bf16, fp16"),
        ({"precision": "fp16", "device": "cpu"}, "'fp16' needs a GPU; on the CPU choose 'bf16'"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"data": DataLoader(Pictures(4))}, r"got DataLoader; .*give its \.dataset"),
        ({"data": Endless()}, "data set with len.* and indexing, got Endless"),
        ({"val": Pictures(0)}, "the data set to evaluate on is empty"),
    ],
)
def test_bad_arguments(options, message):
    model = tiny()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        train(model, **options)
    assert same(before, model.state_dict())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    with pytest.raises(ValueError, match=r"device 'cuda' cannot be used here .*try 'cpu'"):
        train(tiny(), device="cuda")
    with pytest.raises(ValueError, match="device 'cuda'"):
        evaluate(tiny(), Pictures(4), device="cuda")


def test_nothing_to_train():
    with pytest.raises(ValueError, match="every parameter is frozen. Choose with minica.tune or minica.adapt"):
        train(tiny().requires_grad_(False))


def test_empty_sets():
    with pytest.raises(ValueError, match="training set is empty"):
        fit(tiny(), Pictures(0))
    for data in (Pictures(0), DataLoader(Pictures(0))):
        with pytest.raises(ValueError, match="data set to evaluate on is empty"):
            evaluate(tiny(), data)


@pytest.mark.parametrize("label", [3, -1])
def test_labels_that_the_classifier_does_not_have(label):
    labels = torch.arange(24) % 3
    labels[20] = label
    data = TensorDataset(torch.randn(24, 3, SIZE, SIZE), labels)
    for use in (train, evaluate):
        with pytest.raises(ValueError, match=f"label {label} is not among the classifier's 3 classes, 0 to 2"):
            use(tiny(), data)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = tiny()
    before = snapshot(model)
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="cannot write checkpoints to .*file.*choose another folder"):
            train(model, folder=folder)
    assert same(before, model.state_dict())


if __name__ == "__main__":
    child_killed(Path(sys.argv[1]))
    child_two(Path(sys.argv[1]))
