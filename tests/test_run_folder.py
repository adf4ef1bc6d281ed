"""What a run is known by, and what may happen to its folder."""

import os
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import net, same, snapshot
from PIL import Image
from test_training import SIZE, Pictures, checkpoints, tiny, train
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import minica

IMAGES, LABELS = Pictures(24).images, Pictures(24).labels


def pairs(images, labels):
    return list(zip(images, labels.tolist(), strict=True))


class Opened(Dataset):
    """Items that are made one by one, as those of most people's own data sets, and augmented."""

    def __init__(self, images, labels):
        self.loaded = dict(enumerate(pairs(images, labels)))

    def __len__(self):
        return len(self.loaded)

    def __getitem__(self, i):
        image, label = self.loaded[i]
        return image + 0.1 * torch.randn(()), label


class Arrays(Dataset):
    """As CIFAR10 and others of torchvision keep their pictures."""

    def __init__(self, images, labels):
        self.data, self.targets = images.numpy(), labels.tolist()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return torch.from_numpy(self.data[i]), self.targets[i]


DATA = {
    "a list": pairs,
    "tensors": TensorDataset,
    "arrays": Arrays,
    "opened": Opened,
    "part of a list": lambda x, y: Subset(pairs(x, y), range(20)),
    "part of a part": lambda x, y: Subset(Subset(TensorDataset(x, y), range(22)), list(range(20))),
    "several": lambda x, y: ConcatDataset([TensorDataset(x[:12], y[:12]), list(zip(x[12:], y[12:], strict=True))]),
    "part of several": lambda x, y: Subset(ConcatDataset([Opened(x[:12], y[:12]), Opened(x[12:], y[12:])]), range(20)),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("change", ["images", "labels", "order"])
def test_data_cannot_be_exchanged_between_two_halves(kind, change, tmp_path):
    make, images, labels = DATA[kind], IMAGES.clone(), LABELS.clone()
    train(tiny(), make(IMAGES, LABELS), folder=tmp_path)
    assert len(train(tiny(), make(images.clone(), labels.clone()), folder=tmp_path)) == 2  # the same data, made again
    if change == "images":
        images[[3, 4]] = images[[4, 3]]
    elif change == "labels":
        labels[[3, 4]] = labels[[4, 3]]
    else:
        images, labels = images.flip(0), labels.flip(0)
    with pytest.raises(ValueError, match=r"another run, with training data \w+ \(here \w+\)"):
        train(tiny(), make(images, labels), folder=tmp_path)


def test_a_part_is_known_by_what_is_in_it(tmp_path):
    whole = TensorDataset(IMAGES, LABELS)
    train(tiny(), Subset(whole, range(16)), folder=tmp_path)
    with pytest.raises(ValueError, match="another run, with training data"):
        train(tiny(), Subset(whole, range(4, 20)), folder=tmp_path)


def test_transforms_are_part_of_a_run(tmp_path):
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.RandomState(i).randint(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")

    def folder(scale):
        steps = [v2.ToImage(), v2.RandomResizedCrop(SIZE, scale=(scale, 1)), v2.ToDtype(torch.float32, scale=True)]
        return ImageFolder(tmp_path / "images", v2.Compose(steps))

    train(tiny(2), folder(0.5), folder=tmp_path / "run")
    train(tiny(2), folder(0.5), folder=tmp_path / "run")
    for other in (folder(0.8), Subset(folder(0.8), range(8))):
        with pytest.raises(ValueError, match=r"another run, with .*transform \w+ \(here \w+\)"):
            train(tiny(2), other, folder=tmp_path / "run")
    (tmp_path / "images" / "b" / "3.png").rename(tmp_path / "images" / "b" / "4.png")  # files are known by their names
    with pytest.raises(ValueError, match=r"another run, with training data \w+ \(here \w+\); choose"):
        train(tiny(2), folder(0.5), folder=tmp_path / "run")


def test_what_no_seed_repeats_does_not_tell_runs_apart(tmp_path):
    class Restless(Opened):
        def __getitem__(self, i):
            image, label = self.loaded[i]
            return image + torch.from_numpy(np.random.default_rng().normal(size=(3, 1, 1))).float(), label

    train(tiny(), Restless(IMAGES, LABELS), folder=tmp_path)
    assert len(train(tiny(), Restless(IMAGES, LABELS), folder=tmp_path)) == 2


def test_only_a_sample_of_what_must_be_opened_is(tmp_path):
    seen = []

    class Watched(Opened):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i)

    data = Watched(torch.randn(1000, 3, SIZE, SIZE), torch.zeros(1000, dtype=torch.long))
    train(tiny(), data, epochs=1, batch_size=500, folder=tmp_path)
    assert len(seen) <= 1000 + 2 * minica.run_folder.SAMPLED and {0, 992} <= set(seen[: 2 * minica.run_folder.SAMPLED])


def test_the_recipe_is_part_of_a_run(tmp_path):
    def run(**options):
        model = minica.adapt(net("test_resnet", 3), "residual_parallel", **options)
        return minica.fit(model, TensorDataset(IMAGES, LABELS), epochs=1, batch_size=8, progress=False, folder=tmp_path)

    run()
    with pytest.raises(ValueError, match="another run, with recipe .*identity.* .here .*published"):
        run(init="published")


# The folder -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [False, True])
def test_a_second_run_in_the_folder_is_refused(link, tmp_path):
    folder, messages = tmp_path / "run", []
    folder.mkdir()
    other = folder
    if link:
        other = tmp_path / "link"
        other.symlink_to(folder, target_is_directory=True)

    def second(record):
        model = tiny()
        before = snapshot(model)
        with pytest.raises(
            ValueError, match="another run is writing to .*/run; wait until it ends, or choose another"
        ) as error:
            train(model, folder=other)
        assert same(before, model.state_dict())
        messages.append(str(error.value))

    history = train(tiny(), folder=folder, on_epoch=second)
    assert len(messages) == 2 and checkpoints(folder) == ["checkpoint-00001.pt", "checkpoint-00002.pt"]
    assert train(tiny(), folder=other) == history  # afterwards it is free


def test_another_thread_is_refused(tmp_path):
    errors = []

    def second():
        try:
            train(tiny(), folder=tmp_path)
        except ValueError as error:
            errors.append(str(error))

    def start(record):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    train(tiny(), folder=tmp_path, on_epoch=start, epochs=1)
    assert "another run is writing to" in errors[0]


def test_a_folder_is_free_after_its_run_failed_or_was_killed(tmp_path):
    def fail(record):
        raise KeyError("of the caller")

    with pytest.raises(KeyError):
        train(tiny(), folder=tmp_path, on_epoch=fail)
    source = "\n".join(
        [
            "import os, signal, sys",
            f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(minica.__file__).parents[1])!r}]",
            "from test_training import tiny, train",
            "train(tiny(), folder=sys.argv[1], on_epoch=lambda record: os.kill(os.getpid(), signal.SIGKILL))",
        ]
    )
    killed = subprocess.run([sys.executable, "-c", source, tmp_path], timeout=300, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    history = train(tiny(), folder=tmp_path)
    assert [record["epoch"] for record in history] == [1, 2]
    assert checkpoints(tmp_path) == ["checkpoint-00001.pt", "checkpoint-00002.pt"]


def test_what_killed_runs_left_half_written_is_deleted(tmp_path):
    train(tiny(), folder=tmp_path, epochs=1)
    left = [".checkpoint-00002.pt.0123456789abcdef0123456789abcdef", "checkpoint-00002.tmp"]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    train(tiny(), folder=tmp_path, epochs=1)
    assert checkpoints(tmp_path) == ["checkpoint-00001.pt", "notes.txt"]


def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(tmp_path):
    model = tiny()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # the next file is cut off there

    try:
        with pytest.raises(
            OSError, match=r"cannot write the checkpoint .*checkpoint-00002\.pt \(.*File too large\); make room"
        ):
            train(model, folder=tmp_path, on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints(tmp_path) == ["checkpoint-00001.pt"]
    assert len(train(tiny(), folder=tmp_path)) == 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "dangling"])
def test_what_is_no_regular_file(kind, tmp_path):
    train(tiny(), folder=tmp_path, epochs=2)
    file = tmp_path / "checkpoint-00003.pt"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "device" else tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"t-00003\.pt is damaged .*no regular file.*delete it to go on from checkpoint-00002"):
        train(tiny(), folder=tmp_path, epochs=2)


@pytest.mark.parametrize("content", [{}, {"run": 1}, [1], "text", {"run": {}, "history": []}])
def test_a_file_that_holds_something_else(content, tmp_path):
    torch.save(content, tmp_path / "checkpoint-00001.pt")
    with pytest.raises(ValueError, match=r"t-00001\.pt is damaged or no checkpoint of fit .*delete it to start over"):
        train(tiny(), folder=tmp_path)


def test_a_small_file_that_would_unpack_to_a_large_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "checkpoint-00001.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
    with pytest.raises(ValueError, match="damaged or no checkpoint of fit .*compressed"):
        train(tiny(), folder=tmp_path)


def test_resuming_touches_nothing_but_what_trains(tmp_path):
    model = tiny()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    train(model, folder=tmp_path)
    again, told = tiny(), []
    again[0].requires_grad_(False)
    again[1].requires_grad_(False)
    again.register_load_state_dict_post_hook(lambda *args: told.append(args))
    train(again, folder=tmp_path)
    assert same(again.state_dict(), model.state_dict()) and not told  # load_state_dict would tell lean layers to end
