"""One loop for any task: losses, batches and metrics of the caller, and what is refused before the first step."""

import copy
import math
import warnings

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from nets import net, same, snapshot
from test_training import SIZE, Pictures, tiny, train, without_seconds
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import minica
from minica import data
from minica.training import evaluate, fit, predict


class Items(Dataset):
    """Pictures with labels, or other targets, of any kind."""

    def __init__(self, target, n=24, **facts):
        self.pictures, self.target = Pictures(n), target
        vars(self).update(facts)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        image, label = self.pictures[i]
        return image, self.target(label)


# Labels -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        np.int32,
        np.uint8,
        lambda i: np.array([i], np.uint8),
        lambda i: torch.tensor([i], dtype=torch.int16),
        lambda i: torch.tensor(i),
    ],
)
def test_whole_numbers_of_any_kind(kind):
    expected, found = tiny(), tiny()
    history = train(expected, Pictures(24), Pictures(9))
    assert without_seconds(train(found, Items(kind), Items(kind, 9))) == without_seconds(history)
    assert same(expected.state_dict(), found.state_dict())
    logits, labels = predict(found, Items(kind, 9))
    assert torch.equal(labels, Pictures(9).labels) and labels.dtype == torch.int64


def test_labels_of_numpy_from_a_collate_of_ones_own():
    def collate(items):
        images, labels = zip(*items, strict=True)
        return torch.stack(images), np.array(labels, np.uint16)

    expected, found = tiny(), tiny()
    history = train(expected, None, Pictures(9))
    assert without_seconds(train(found, None, Pictures(9), collate=collate)) == without_seconds(history)
    assert same(expected.state_dict(), found.state_dict())


def test_text_is_numbered_by_the_classes():
    names = ("cat", "ant", "dog")
    expected, found, cached = tiny(), tiny(), tiny()
    train(expected)
    train(found, Items(lambda i: names[i], classes=names), Items(lambda i: names[i], 9, classes=names))
    train(cached, Items(lambda i: names[i], classes=names), cache=True)
    assert same(expected.state_dict(), found.state_dict()) and same(expected.state_dict(), cached.state_dict())
    assert torch.equal(predict(found, Items(lambda i: names[i], 9, classes=list(names)))[1], Pictures(9).labels)


MULTI_HOT = TensorDataset(Pictures(24).images, F.one_hot(Pictures(24).labels, 3).float())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (MULTI_HOT, r"one whole number an image, \(N,\) or \(N, 1\), got torch.float32 \(\d+, 3\); .* give loss= and metrics="),
        (Items(lambda i: F.one_hot(torch.tensor(i), 3)), r"got torch.int64 \(\d+, 3\)"),
        (Items(float), r"got torch.float64 \(\d+,\)"),
        (Items(lambda i: "abc"[i]), "'a' is text, and not among the data set's classes, of which it says nothing"),
        (Items(lambda i: "cab"[i], classes=("a", "b", "d")), "'c' is text, and not among the data set's classes, a, b, d"),
        (Items(lambda i: {"label": i}), "got dict; for several labels an image, or another task"),
        (Items(lambda i: i - 1), "label -1 is not among the classifier's 3 classes"),
    ],
)
def test_other_labels_are_refused_before_the_first_step(targets, message):
    for call in (train, lambda model, val: train(model, None, val), evaluate):
        model = tiny()
        before = snapshot(model)
        with pytest.raises(ValueError, match=message):
            call(model, targets)
        assert same(before, model.state_dict())


def test_one_bad_label_in_memory_is_found_before_the_first_step():
    labels = Pictures(24).labels.clone()
    labels[-1] = 7
    model = tiny()
    before = snapshot(model)
    bad = TensorDataset(Pictures(24).images, labels)
    for sets in ((bad, None), (None, bad)):
        with pytest.raises(ValueError, match="label 7 is not among the classifier's 3 classes"):
            train(model, *sets, batch_size=4)
        assert same(before, model.state_dict())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny(1), r"outputs of shape \(1, 1\), not logits \(N, at least 2\)"),
        (lambda: tiny()[:6], r"outputs of shape \(1, 16, 16, 16\)"),
        (lambda: timm.create_model("test_resnet", num_classes=0), r"features of shape \(1, \d+\), .* with num_classes="),
    ],
)
def test_outputs_that_are_no_logits(model, message):
    zeros = TensorDataset(torch.randn(8, 3, 32, 32), torch.zeros(8, dtype=torch.long))
    for call in (fit, evaluate):
        made = model()
        before = snapshot(made)
        with pytest.raises(ValueError, match=message.replace("(1, ", "(1, " if call is fit else "(8, ")):
            call(made, zeros)
        assert same(before, made.state_dict())


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(16))])
def test_another_number_of_classes_than_the_data_has(wrap):
    wrong = tiny(10)
    before = snapshot(wrong)
    with pytest.raises(ValueError, match="3 classes in the data, but 10 outputs of the model: create it with that num_classes"):
        train(wrong, wrap(Items(int, classes=["a", "b", "c"])))
    with pytest.raises(ValueError, match="2 class_weights, but 3 outputs"):
        train(tiny(), class_weights=[1, 2])
    assert same(before, wrong.state_dict())


# Losses, batches and metrics of the caller ------------------------------------------------------------------------------


def multi_label(model, batch):
    images, targets = batch
    return F.binary_cross_entropy_with_logits(model(images), targets)


def exact(model, loader):
    assert not model.training and not torch.is_grad_enabled()
    found = [((model(images) > 0) == (targets > 0.5)).all(1) for images, targets in loader]
    return {"exact": torch.cat(found).double().mean(), "n": np.int64(sum(map(len, found))), "loaders": len(loader)}


def test_multi_label(tmp_path):
    model = tiny()
    options = dict(loss=multi_label, metrics=exact, epochs=6, lr=3e-2, folder=tmp_path)
    history = train(model, MULTI_HOT, MULTI_HOT, **options)
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"] and history[-1]["val_exact"] > 0.9
    assert evaluate(model, MULTI_HOT, batch_size=8, metrics=exact) == {"exact": history[-1]["val_exact"], "n": 24, "loaders": 3}
    assert train(tiny(), MULTI_HOT, MULTI_HOT, **options) == history  # what metrics gave can be read again
    with pytest.raises(ValueError, match="one whole number an image"):  # before the first step
        train(model, MULTI_HOT, MULTI_HOT, loss=multi_label)


def test_dense_prediction():
    masks = (Pictures(24).images[:, 0] > 1).long()
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    found = train(
        model,
        TensorDataset(Pictures(24).images, masks),
        TensorDataset(Pictures(24).images, masks),
        epochs=10,
        lr=0.1,
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        metrics=lambda model, loader: {"right": torch.cat([model(x).argmax(1) == y for x, y in loader]).double().mean()},
    )
    assert found[-1]["val_right"] > 0.9 > found[0]["val_right"]


class Detector(nn.Module):
    """Takes and gives what torchvision's detectors do: a list of images and a list of dicts, in training losses by name."""

    def __init__(self):
        super().__init__()
        self.net = tiny(4)

    def forward(self, images, targets=None):
        found = torch.cat([self.net(image[None]) for image in images])
        if not self.training:
            return [{"boxes": box} for box in found]
        wanted = torch.stack([target["boxes"][0] for target in targets])
        return {"box": F.l1_loss(found, wanted), "other": 0 * found.sum()}


def test_targets_that_are_lists_of_dicts():
    """Images of two sizes, so that no batch is a tensor."""
    items = []
    for i in range(16):
        image, label = Pictures(16)[i]
        items.append((image[:, : 8 + i % 2 * 4], {"boxes": torch.full((1, 4), float(label)), "name": [str(i)]}))
    model = Detector()
    model.net[1] = nn.Identity()
    history = train(
        model,
        items,
        items[:4],
        epochs=8,
        lr=3e-2,
        collate=lambda batch: tuple(zip(*batch, strict=True)),
        loss=lambda model, batch: sum(model(*batch).values()),
        metrics=lambda model, loader: {"images": sum(len(model(images)) for images, _ in loader)},
    )
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"] and history[-1]["val_images"] == 4


def test_a_loss_that_is_no_number():
    for loss in (lambda model, batch: model(batch[0]), lambda model, batch: 1.0, lambda model, batch: torch.tensor(1.0)):
        with pytest.raises(ValueError, match="loss must return one number that depends on what trains, got"):
            train(tiny(), loss=loss)


# The default loss's options, accumulation and clipping ------------------------------------------------------------------


def test_class_weights_and_label_smoothing():
    options = dict(weight=torch.tensor([1.0, 2.0, 0.0]), label_smoothing=0.1)
    one, other = tiny(), tiny()
    history = train(one, class_weights=[1, 2, 0], label_smoothing=0.1)
    again = train(other, loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], **options))
    assert [r["train_loss"] for r in history] == pytest.approx([r["train_loss"] for r in again], rel=1e-5)
    assert history[0]["train_loss"] != pytest.approx(train(tiny())[0]["train_loss"], rel=1e-3)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    whole, parts, seen = tiny(norm=False), tiny(norm=False), []
    images, labels = Pictures(27).images, Pictures(27).labels
    parts[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])) if module.training else None)
    history = train(whole, TensorDataset(images, labels))
    accumulated = train(parts, TensorDataset(images, labels), accumulate=4)
    assert seen == [2] * 4 * 3 * 2  # the same three batches of eight an epoch, in parts
    for one, other in zip(history, accumulated, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4) and one["lr"] == other["lr"]
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 1 processes times accumulate=3, got 8"):
        train(parts, accumulate=3)


def test_clipping():
    model, norms = tiny(norm=False), []
    before = copy.deepcopy(model)

    def loss(model, batch):
        return 1e4 * F.cross_entropy(model(batch[0]), batch[1])

    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        grads = [weight.grad for group in self.param_groups for weight in group["params"]]
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        train(before, loss=loss, epochs=1)
        assert min(norms) > 2
        norms.clear()
        train(model, loss=loss, epochs=1, clip=0.5)
    assert norms == pytest.approx([0.5] * 3, rel=1e-3)


# Epochs -----------------------------------------------------------------------------------------------------------------


def scripted(scores):
    """Metrics that give these numbers, one an epoch."""
    rest = iter(scores)
    return lambda model, loader: {"score": next(rest)}


def test_patience_stops_and_keeps_the_best_epoch(tmp_path):
    scores = [0.2, 0.5, math.nan, 0.5, 0.4, 0.9]
    states, model = [], tiny()
    options = dict(epochs=6, patience=3, monitor="score", lr=1e-2, folder=tmp_path)
    history = train(
        model, None, Pictures(9), metrics=scripted(scores), on_epoch=lambda record: states.append(snapshot(model)), **options
    )
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5] and len(states) == 5
    trained = {name for name, _ in model.named_parameters()}
    assert same({key: states[1][key] for key in trained}, {key: model.state_dict()[key] for key in trained})
    again = tiny()  # a finished run gives the best again, without another epoch
    assert without_seconds(train(again, None, Pictures(9), metrics=scripted([]), **options))[:2] == without_seconds(history)[:2]
    assert same(again.state_dict(), model.state_dict())


def test_a_run_with_everything_is_interrupted_and_resumed(tmp_path):
    """Patience, accumulation, clipping, weights and smoothing: the bits of a run that was not interrupted."""
    options = dict(epochs=5, patience=4, accumulate=2, clip=0.5, class_weights=[1, 2, 3], label_smoothing=0.1, lr=1e-2)

    def run(folder, stop=None):
        model, told = tiny(dropout=0.3), []

        def tell(record):
            told.append(record["epoch"])
            if record["epoch"] == stop:
                raise KeyboardInterrupt

        try:
            history = train(model, Pictures(40, noisy=True), Pictures(9), on_epoch=tell, folder=folder, **options)
        except KeyboardInterrupt:
            return model, None, told
        return model, history, told

    model, history, told = run(tmp_path / "calm")
    assert told == [1, 2, 3, 4, 5]
    assert run(tmp_path / "stopped", 2)[2] == [1, 2] and run(tmp_path / "stopped", 3)[2] == [3]
    resumed, again, told = run(tmp_path / "stopped")
    assert told == [4, 5] and without_seconds(again) == without_seconds(history)
    assert same(resumed.state_dict(), model.state_dict())
    for key, other in (("clip", 0.4), ("accumulate", 1), ("class_weights", [1, 2, 2]), ("patience", 3), ("label_smoothing", 0)):
        with pytest.raises(ValueError, match=f"holds checkpoints of another run, with {key} "):
            train(tiny(dropout=0.3), Pictures(40, noisy=True), Pictures(9), folder=tmp_path / "calm", **options | {key: other})


def test_the_record_of_on_epoch_is_a_copy():
    histories = [train(tiny(), on_epoch=call) for call in (None, lambda record: record.clear())]
    assert without_seconds(histories[0]) == without_seconds(histories[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be a whole number from 1, got 0"),
        ({"clip": -1}, "clip must be a number from 0 to inf, got -1"),
        ({"label_smoothing": 2}, "label_smoothing must be a number from 0 to 1, got 2"),
        ({"seed": None}, "seed must be a whole number from 0, got None"),
        ({"patience": 0, "val": Pictures(3)}, "patience must be a whole number from 1, got 0"),
        ({"patience": 2}, "patience needs val"),
        ({"patience": 2, "val": Pictures(3), "monitor": "loss"}, "a monitor that is one of accuracy, balanced_accuracy"),
        (
            {"patience": 2, "val": Pictures(3), "metrics": lambda model, loader: {"x": 1}},
            "'accuracy' is no number among .*val_x",
        ),
        ({"loss": multi_label, "class_weights": [1, 1, 1]}, "class_weights and label_smoothing are of the default loss"),
        ({"loss": multi_label, "label_smoothing": 0.1}, "of the default loss"),
        ({"collate": list, "cache": True}, "leave collate out, or train without the cache"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        train(tiny(), **options)


# What the data says of itself -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    return data.load("shapes", task="count", size=32, train_size=32)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_adapter_file_knows_its_data(task, wrapped, tmp_path):
    model = minica.adapt(net("test_resnet", len(task.classes)), "residual_parallel")
    training = Subset(task.train, range(16)) if wrapped else task.train
    fit(model, training, epochs=1, batch_size=8, progress=False)
    minica.save_adapter(model, tmp_path)
    told = minica.adapt(net("test_resnet", len(task.classes)), "residual_parallel")
    minica.save_adapter(told, tmp_path / "told", task)
    written, expected = (minica.adapter_files.read_config(folder) for folder in (tmp_path, tmp_path / "told"))
    keys = ("classes", "input_size", "resize", "mean", "std", "training_data", "licence")
    assert {key: written[key] for key in keys} == {key: expected[key] for key in keys}
    fit(model, TensorDataset(torch.randn(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)), epochs=1, progress=False)
    minica.save_adapter(model, tmp_path)  # of other data it says nothing that is not so
    assert not set(keys) & minica.adapter_files.read_config(tmp_path).keys()


def test_every_split_says_what_it_is(task):
    for split in (task.train, task.val, task.test, task.final):
        assert split.about["classes"] == task.classes and split.about["mean"] == task.mean
    assert data.ImageDataset(task.train.images, task.train.labels, task.train.transform).about == {}


def test_a_head_for_other_classes_is_refused(task, tmp_path):
    model = minica.adapt(net("test_resnet", 10), "residual_parallel")
    before = snapshot(model)
    with pytest.raises(ValueError, match="8 classes in the data, but 10 outputs of the model"):
        fit(model, task.train, epochs=1, progress=False)
    assert same(before, model.state_dict())


def test_another_normalisation_than_the_weights_expect(task, recwarn):
    model = minica.adapt(net("test_resnet", len(task.classes)), "residual_parallel")
    options = dict(epochs=1, batch_size=8, progress=False)
    fit(model, task.train, **options)
    assert not [w for w in recwarn if "normalised" in str(w.message)]
    other = data.load("shapes", task="count", size=32, train_size=32, **data.IMAGENET)
    with pytest.warns(
        UserWarning, match=r"normalised by mean \(0.485.*the model's weights expect \(0.5.*\*\*minica.normalization"
    ):
        fit(model, other.train, **options)
    recwarn.clear()
    unknown = nn.Sequential(model)  # what is no network of timm does not say
    fit(unknown, other.train, **options)
    assert not [w for w in recwarn if "normalised" in str(w.message)]


# Validation -------------------------------------------------------------------------------------------------------------


def test_checking_val_changes_no_random_number():
    """A val that draws random numbers gives what it would have given, with workers and without."""
    for workers in (0, 2):
        with_val, without = tiny(dropout=0.3), tiny(dropout=0.3)
        noisy = Pictures(9, noisy=True, seed=1)
        first = train(with_val, Pictures(24, noisy=True), noisy, workers=workers)
        train(without, Pictures(24, noisy=True), workers=workers)
        assert same(with_val.state_dict(), without.state_dict())
        assert without_seconds(train(tiny(dropout=0.3), Pictures(24, noisy=True), noisy, workers=workers)) == without_seconds(
            first
        )


def test_a_val_that_the_model_cannot_take_is_found_before_the_first_step():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 3))
    before = snapshot(model)
    with pytest.raises(RuntimeError):
        train(model, None, TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)))
    assert same(before, model.state_dict())


def test_val_as_a_loader_with_its_own_batches():
    held_out, model = Pictures(9), tiny()
    history = train(model, None, DataLoader(held_out, batch_sampler=[[0, 1], [2, 3, 4, 5, 6, 7, 8]]))
    assert history[-1]["val_n"] == 9 and history[-1]["val_loss"] == pytest.approx(evaluate(model, held_out)["loss"], rel=1e-5)


class Bias(torch.nn.Module):
    """The same logits for every image, or with ``slope`` others."""

    def __init__(self, slope=0.0):
        super().__init__()
        self.bias, self.slope = torch.nn.Parameter(torch.zeros(3)), slope

    def forward(self, images):
        return self.bias + self.slope * images.flatten(1).mean(1, keepdim=True) * torch.tensor([1.0, 0, 0])


def test_a_network_that_no_longer_tells_images_apart_is_named():
    data = TensorDataset(torch.rand(12, 3, 4, 4), torch.arange(12) % 3)
    options = dict(batch_size=4, lr=1e-3, progress=False)
    with pytest.warns(
        UserWarning, match="after 6 batches the network gives the same answer for every image.*warmup=0.5"
    ) as said:
        minica.fit(Bias(), data, epochs=5, **options)
    assert sum("same answer" in str(warning.message) for warning in said) == 1
    with pytest.warns(UserWarning, match="after 12 batches"):  # of which two make a step
        minica.fit(Bias(), data, epochs=2, accumulate=2, **options)
    with warnings.catch_warnings(action="error"):
        minica.fit(Bias(), data, epochs=1, **options)  # every run passes through such a moment
        minica.fit(Bias(slope=1.0), data, epochs=3, **options)
        sure = TensorDataset(torch.rand(12, 3, 4, 4) + 5, torch.zeros(12, dtype=torch.int64))
        minica.fit(Bias(slope=20.0), sure, epochs=3, **options)  # all of one class, and rightly so
