"""What a referee tried: damaged folders, killed writers, random sequences of calls, wrong arguments, tied weights."""

import copy
import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from nets import disturb, images, net, same, snapshot
from torch import nn

import minica
from minica.adapter_files import AdapterFileError, _checksum, read_config

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("of this backbone", "and is not used")]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def saved(tmp_path):
    model = disturb(minica.adapt(net("basic"), "conv_parallel", compression=2))
    return minica.save_adapter(model, tmp_path / "adapter", classes=list("abcde")), model


def everything(model):
    """All that a refused call must leave as it was."""
    found = {}
    for name, module in model.named_modules():
        hooks = [module._forward_hooks, module._forward_pre_hooks, module._state_dict_hooks]
        hooks += [module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks]
        found[name] = (type(module), module.training, [len(hook) for hook in hooks], sorted(vars(module)))
    return found, {key: (id(weight), weight.requires_grad) for key, weight in model.named_parameters()}, snapshot(model)


def unchanged(before, model):
    after = everything(model)
    return before[:2] == after[:2] and same(before[2], after[2])


def refused(folder, message="", model=None):
    model = net("basic") if model is None else model
    before = everything(model)
    with pytest.raises(AdapterFileError, match=message) as caught:
        minica.load_adapter(model, folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert unchanged(before, model)


def signed_again(folder, change=lambda config: None, tensors=lambda tensors: None):
    """The file with another configuration and other tensors, and the right checksum."""
    file = folder / WEIGHTS
    with safetensors.safe_open(file, framework="pt") as opened:
        held = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
        config = json.loads(opened.metadata()["minica"].partition(" ")[2])
    change(config), tensors(held)
    text = json.dumps(config)
    file.write_bytes(safetensors.torch.save(held, {"minica": f"{_checksum(text, held)} {text}"}))
    return folder


# ---------------------------------------------------------------- folders


def test_flipped_bits(saved):
    """Every bit of the first bytes, and some of the header, the configuration and the numbers."""
    file = saved[0] / WEIGHTS
    data, draw = file.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    places = [
        *range(8 * 24),
        *(draw.randrange(8 * header) for _ in range(600)),
        *(draw.randrange(8 * len(data)) for _ in range(60)),
    ]
    for place in places:
        altered = bytearray(data)
        altered[place // 8] ^= 1 << place % 8
        file.write_bytes(altered)
        with pytest.raises(AdapterFileError):
            read_config(saved[0])


@pytest.mark.parametrize("which", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("kind", ["pipe", "folder", "/dev/zero", "/dev/null", "loop", "nowhere", "socket", "deep", "large"])
def test_what_is_no_regular_file(saved, which, kind):
    """Reading it would not end, or fill the memory; the copy of the configuration is not needed."""
    folder, model = saved
    path = folder / which
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, 0o600 | 0o140000)
    elif kind == "deep":
        path.write_text("[" * 10**6)
    elif kind == "large":
        path.touch()
        os.truncate(path, 10**10)
    else:
        path.symlink_to({"loop": path, "nowhere": "nowhere"}.get(kind, kind))
    if which == WEIGHTS:
        refused(folder, WEIGHTS)
    else:
        assert torch.equal(minica.load_adapter(net("basic"), folder)(images("basic")), model(images("basic")))


@pytest.mark.parametrize("length", [0, 1, 2**24, 2**24 + 1, 2**32, 2**63, 2**64 - 1])
def test_lengths_of_headers(saved, length):
    file = saved[0] / WEIGHTS
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    refused(saved[0], "is damaged")


def test_more_than_the_memory(saved):
    """A sparse file whose header is right: it would be read for minutes, and then the process would be killed."""
    shape = 10**13
    header = json.dumps({"t": {"dtype": "U8", "shape": [shape], "data_offsets": [0, shape]}}).encode()
    with open(saved[0] / WEIGHTS, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(8 + len(header) + shape)
        except OSError:
            pytest.skip("the file system has no files of this size")
    refused(saved[0], "it has .* GB")


KINDS = [torch.int8, torch.bool, torch.float16, torch.float64, torch.complex64]


@pytest.mark.parametrize("key", ["layer1.0.conv1.conv_adapter.up.weight", "fc.weight", "layer1.0.conv1.conv_adapter.alpha"])
def test_tensors_with_a_right_checksum(saved, key, tmp_path):
    def altered(change):
        folder = tmp_path / "altered"
        folder.mkdir(exist_ok=True)
        (folder / WEIGHTS).write_bytes((saved[0] / WEIGHTS).read_bytes())
        return signed_again(folder, tensors=change)

    for kind in KINDS:
        refused(altered(lambda held, kind=kind: held.update({key: held[key].to(kind)})), f"{key} has type {kind}")
    for value in (float("nan"), float("inf")):
        refused(altered(lambda held, value=value: held[key].view(-1)[:1].fill_(value)), f"{key} has values that are not finite")
    refused(altered(lambda held: held.pop(key)), f"missing.*{key}")
    refused(altered(lambda held: held.update({key: held[key].flatten()[1:].clone()})), f"{key} has shape")
    place = key.rpartition(".")[0]
    refused(altered(lambda held: held.update({f"{place}.beta": held[key].clone()})), f"no place.*{place}.beta")


BAD_OPTIONS = [
    ("options", dict(kernel_size=-3)),
    ("options", dict(compression="x")),
    ("options", dict(compression=float("nan"))),
    ("options", dict(form=["spatial"])),
    ("options", dict(scheme=None)),
    ("options", dict(model=1)),
    ("options", dict(unknown=1)),
    ("options", [1]),
    ("name", 3),
    ("name", "training"),
    ("norms", None),
    ("norms", ["all"]),
    ("method", "lora"),
    ("method", ["linear"]),
    ("train", "fc"),
    ("train", [3]),
    ("inside", 3),
    ("backbone", ["test_resnet"]),
    ("backbone", "x" * 10**5),
    ("frozen", []),
    ("frozen", {"conv1.0.weight": 3}),
    ("format", "2"),
    ("format", 10**30),
    ("format", [0] * 10**5),
]


@pytest.mark.parametrize(("key", "value"), BAD_OPTIONS, ids=[f"{key}-{str(value)[:20]}" for key, value in BAD_OPTIONS])
def test_configurations_with_a_right_checksum(saved, key, value):
    def change(config):
        config[key] = config[key] | value if key == "options" and isinstance(value, dict) else value

    refused(signed_again(saved[0], change))


# ---------------------------------------------------------------- writers

# Each line that it reads, "FOLDER NUMBER TIMES", starts a process that saves adapters full of this number; 0 times is for ever.
WRITERS = """
import os, pathlib, signal, sys
sys.path[:0] = {path!r}
import torch, minica
from nets import net
model = minica.adapt(net("basic"), compression=2)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    folder, number, times = line.split()
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(int(number)) if weight.requires_grad else None
        left = int(times) or 10**9
        while left:
            minica.save_adapter(model, folder, n=int(number))
            left -= 1
        pathlib.Path(folder + number).touch()
        os._exit(0)
    print(child, flush=True)
"""


@pytest.fixture(scope="module")
def start_writer():
    code = WRITERS.format(path=[str(Path(__file__).parent), str(Path(minica.__file__).parents[1])])
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], **options) as process:
        assert process.stdout.readline() == "ready\n"

        def start(folder, number, times=0):
            print(folder, number, times, file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield start
        process.stdin.close()


def whole(folder):
    """Whether the folder holds one adapter, not parts of two; which reading it checks as well."""
    with warnings.catch_warnings(action="ignore"):  # the copy of the configuration comes a moment later
        number = read_config(folder)["n"]
    values = safetensors.torch.load((folder / WEIGHTS).read_bytes()).values()
    return len({float(value.flatten()[0]) for value in values}) == 1 and number in (1, 2)


def wait_for(*files):
    while not all(file.exists() for file in files):
        time.sleep(0.01)
        yield


def test_killed_writers(start_writer, tmp_path):
    folder, draw = tmp_path / "adapter", random.Random(0)
    start_writer(folder, 1, times=1)
    [*wait_for(tmp_path / "adapter1")]
    for number in [1, 2] * 30:
        child = start_writer(folder, number)
        time.sleep(draw.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        assert whole(folder)
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    minica.save_adapter(minica.adapt(net("basic")), folder)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS], "what killed writers left is deleted"


def test_two_writers_and_a_reader(start_writer, tmp_path):
    folder = tmp_path / "adapter"
    start_writer(folder, 1, times=1)
    [*wait_for(tmp_path / "adapter1")]
    (tmp_path / "adapter1").unlink()
    for number in (1, 2):
        start_writer(folder, number, times=25)
    for _ in wait_for(tmp_path / "adapter1", tmp_path / "adapter2"):
        assert whole(folder)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("limit", [0, 1_000, 50_000])
def test_a_full_disk(saved, limit):
    folder, model = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        minica.save_adapter(disturb(model), folder)
        error = None
    except ValueError as caught:
        error = str(caught)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert error is not None and str(folder) in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("which", [WEIGHTS, CONFIG, ""])
def test_what_is_read_only_is_not_replaced(saved, which):
    """Not by root either, for whom every file can be written."""
    folder, model = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / which).chmod(0o444 if which else 0o555)
    try:
        with pytest.raises(ValueError, match="read-only"):
            minica.save_adapter(disturb(model), folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("which", [WEIGHTS, CONFIG])
def test_a_folder_in_the_place_of_a_file(saved, which):
    folder, model = saved
    (folder / which).unlink()
    (folder / which).mkdir()
    before = {path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=f"cannot write an adapter.*{which}"):
        minica.save_adapter(disturb(model), folder)
    assert {path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()} == before


# ---------------------------------------------------------------- sequences of calls


def output(model):
    mode = model.training
    model.eval()
    with torch.no_grad():
        y = model(images("basic", 1, (32, 32)).to(next(model.parameters()).dtype)).double()
    model.train(mode)
    return y


class Sequence:
    """A model, and for each of its sets, and for none, the output that it must keep giving."""

    def __init__(self, seed, folder):
        self.draw, self.folder, self.made = random.Random(seed), folder, []
        self.model = net("basic")
        self.expected, self.before, self.tolerance = {None: output(self.model)}, everything(self.model), 0.0

    def step(self):
        names = [
            "adapt",
            "adapt",
            "switch",
            "switch",
            "train",
            "train",
            "copy",
            "lean",
            "fold",
            "save",
            "load_state",
            "move",
            "detach",
        ]
        name = self.draw.choice(names)
        getattr(self, name)()
        for wanted, y in self.expected.items():
            with minica.switched(self.model, wanted):
                torch.testing.assert_close(output(self.model), y, rtol=self.tolerance, atol=self.tolerance)
        return name

    @property
    def active(self):
        return self.model._minica.active if hasattr(self.model, "_minica") else None

    def adapt(self):
        if len(self.made) < 3:
            train = self.draw.choice([(), "layer4", ("bn1",)])
            made = dict(scheme=self.draw.choice([*minica.SCHEMES]), name=f"set{len(self.made)}", train=train)
            self.made.append(made | dict(num_classes=self.draw.choice([None, 3, 7])))
            minica.adapt(self.model, **self.made[-1])
            self.expected[made["name"]] = output(self.model)

    def switch(self):
        minica.switch(self.model, self.draw.choice([*self.expected]))

    def train(self):
        if self.active is not None:
            self.model.train()
            weights = [weight for weight in self.model.parameters() if weight.requires_grad]
            optimizer = torch.optim.SGD(weights, lr=1e-2)
            x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(weights[0].dtype)
            self.model(x).tanh().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            self.expected[self.active] = output(self.model.eval())

    def copy(self):
        self.model = self.draw.choice([copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])(self.model)

    def lean(self):
        self.draw.choice([minica.lean, minica.plain])(self.model)

    def fold(self):
        folded = minica.fold(self.model)
        for name, y in self.expected.items():
            with minica.switched(folded, name):
                torch.testing.assert_close(output(folded), y, rtol=1e-2, atol=1e-2)

    def save(self):
        if self.active is not None:
            minica.save_adapter(self.model, self.folder)
            fresh = net("basic")
            fresh.reset_classifier(self.expected[self.active].shape[1])
            fresh.to(next(self.model.parameters()).dtype)
            minica.load_adapter(fresh, self.folder)
            torch.testing.assert_close(output(fresh), self.expected[self.active], rtol=self.tolerance, atol=self.tolerance)

    def load_state(self):
        """Into an identically prepared model, whichever set either has in use."""
        fresh = net("basic").to(next(self.model.parameters()).dtype)
        for made in self.made:
            minica.adapt(fresh, **made)
        if self.made:
            minica.switch(fresh, self.draw.choice([*self.expected]))
        state = snapshot(self.model)
        assert not any(fresh.load_state_dict(state, strict=True, assign=self.draw.random() < 0.5))
        assert same(fresh.state_dict(), state)
        self.model = minica.switch(fresh, self.active) if self.made else fresh

    def move(self):
        self.draw.choice([nn.Module.double, nn.Module.float, lambda model: model.to(memory_format=torch.channels_last)])(
            self.model
        )
        self.tolerance = 1e-4

    def detach(self):
        if self.made:
            minica.switch(self.model, None)
        mode = self.model.training
        minica.detach(self.model).eval()
        assert [*map(repr, everything(self.model)[0].values())] == [*map(repr, self.before[0].values())]
        assert all(weight.requires_grad for weight in self.model.parameters())
        self.model.train(mode)
        self.made, self.expected = [], {None: self.expected[None]}


@pytest.mark.parametrize("seed", range(8))
def test_random_sequences(seed, tmp_path):
    sequence, done = Sequence(seed, tmp_path), []
    for _ in range(14):
        try:
            done.append(sequence.step())
        except Exception as error:
            raise AssertionError(f"after {done}") from error


def test_statistics_of_the_backbone_after_a_move():
    """A move replaces buffers; what is loaded while no set is in use must still be there after a switch to a set and back."""
    model = minica.adapt(net("basic"), name="a", train="bn1")
    minica.switch(model, None).double()
    state = {key: value * 1.5 for key, value in net("basic").double().state_dict().items() if value.is_floating_point()}
    model.load_state_dict(state, strict=False)
    expected = output(model)
    assert torch.equal(model.state_dict()["bn1.running_mean"], state["bn1.running_mean"])
    minica.switch(minica.switch(model, "a"), None)
    assert torch.equal(output(model), expected)


def test_assigned_tensors_while_no_set_is_in_use():
    model = minica.switch(minica.adapt(net("basic"), name="a", train="bn1"), None)
    state = {key: value * 1.5 if value.is_floating_point() else value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert same(model.state_dict(), state)
    expected = output(model)
    minica.switch(minica.switch(model, "a"), None)
    assert torch.equal(output(model), expected) and same(model.state_dict(), state)


def test_detach_ends_lean_without_adapters():
    model = net("basic")
    before = everything(model)
    assert unchanged(before, minica.detach(minica.lean(model)))


# ---------------------------------------------------------------- tensors with two names


class Tied(nn.Module):
    """A head that is called twice under two names, and two classifiers with one weight."""

    def __init__(self, seed=0):
        super().__init__()
        self.backbone = net("basic", 0)
        torch.manual_seed(seed)
        self.one = nn.Linear(96, 96)
        self.two = self.one
        self.out, self.proj = nn.Linear(96, 4, bias=False), nn.Linear(96, 4, bias=False)
        self.proj.weight = self.out.weight

    def forward(self, x):
        x = self.two(self.one(self.backbone(x)))
        return self.out(x) + self.proj(x)


@pytest.mark.parametrize("train", [("one", "out"), ("two", "proj"), ("one", "two", "proj"), ("*",)], ids=str)
@pytest.mark.parametrize("method", ["conv_adapter", "linear"])
def test_tied_weights_train_by_either_name_and_stay_tied(method, train, tmp_path):
    model, x = Tied(1).eval(), images("basic")
    start = model(x)
    minica.tune(model, method, backbone="backbone", train=train)
    assert model.out.weight is model.proj.weight and torch.equal(model(x), start)
    assert model.two.weight.requires_grad and model.proj.weight.requires_grad
    disturb(model)
    expected = model(x)
    minica.save_adapter(model, tmp_path)
    fresh = minica.load_adapter(Tied(2).eval(), tmp_path)
    assert torch.equal(fresh(x), expected) and fresh.out.weight is fresh.proj.weight
    if method == "conv_adapter":
        with minica.switched(model, None):
            assert torch.equal(model(x), start) and model.out.weight is model.proj.weight
        assert torch.equal(model(x), expected) and model.out.weight is model.proj.weight


@pytest.mark.parametrize("method", ["full", "bias", "norm"])
def test_parts_with_two_names(method, tmp_path):
    def build():
        model = net("basic")
        model.last = model.layer4  # as encoders do that name their stages anew
        return model

    model = disturb(minica.tune(build(), method))
    minica.save_adapter(model, tmp_path)
    assert torch.equal(minica.load_adapter(build(), tmp_path)(images("basic")), model(images("basic")))


def test_residual_adapters_need_no_classifier():
    model = minica.tune(net("basic", 0), "residual_adapter")
    assert any(weight.requires_grad for weight in model.parameters())


# ---------------------------------------------------------------- wrong arguments

WRONG = [True, 0, -1, 2.5, float("nan"), 10**400, "no such", "", b"x", [], ["x"], [[]], {}, {"x": 1}, (1, 2, 3), torch.zeros(2)]
WRONG += [
    torch.tensor(3),
    np.zeros(2),
    np.float32("nan"),
    object(),
    len,
    int,
    iter([]),
    1j,
    Path("x"),
    torch.float32,
    slice(1),
    ...,
]
MEANT = {  # what of the list above is a right value
    "train": ([],),
    "compression": (2.5, 10**400),
    "stages": ((1, 2, 3),),
    "backbone": ("",),
    "spec": ({},),
    "adapters": ("no such", ""),
}


def wrong(*names):
    meant = [repr(value) for name in names for value in MEANT.get(name, ())]
    return [value for value in WRONG if repr(value) not in meant]


def all_refused(call, values, model):
    before = everything(model)
    for value in values:
        with pytest.raises(ValueError) as caught:
            call(model, value)
            pytest.fail(f"{value!r} was accepted")
        assert unchanged(before, model), f"{value!r} was refused late: {caught.value}"


@pytest.mark.parametrize(
    "argument",
    ["scheme", "compression", "kernel_size", "name", "form", "init", "num_classes", "stages", "spec", "train", "backbone"],
)
def test_wrong_arguments_of_adapt(argument):
    def call(model, value):
        minica.adapt(model, **{"name": "new"} | {argument: value})

    all_refused(call, wrong(argument), net("basic"))
    all_refused(call, wrong(argument)[::5], minica.adapt(net("basic"), name="first"))


def test_wrong_arguments_of_the_rest(saved):
    folder, model = saved
    calls = {
        f"tune.{name}": lambda m, v, name=name: minica.tune(m, **{"method": "linear"} | {name: v})
        for name in ("method", "norms")
    }
    for name in ("train", "backbone"):
        calls[name] = lambda m, v, name=name: minica.tune(m, "linear", **{name: v})
    for name in ("size", "image_size"):
        calls[name] = lambda m, v, name=name: minica.tune(m, "prompt", **{"size": 3, "image_size": 64} | {name: v})
    calls["spec"] = lambda m, v: minica.tune(m, "bias", spec=v)
    calls["switch"] = minica.switch
    calls["switched"] = lambda m, v: minica.switched(m, v).__enter__()
    calls["adapters"] = minica.adapters
    calls["task"] = lambda m, v: minica.save_adapter(m, folder, v)
    for name, call in calls.items():
        all_refused(call, wrong(name), copy.deepcopy(model))
    for name in ("train", "backbone"):
        all_refused(lambda m, v, name=name: minica.load_adapter(m, folder, **{name: v}), wrong(name), net("basic"))
    all_refused(
        lambda m, v: minica.load_adapter(m, folder, v), [value for value in WRONG if repr(value) != "'no such'"], net("basic")
    )
    for value in [value for value in WRONG if not isinstance(value, (str, Path))] + ["", "a\0b"]:
        all_refused(minica.load_adapter, [value], net("basic"))
        all_refused(minica.save_adapter, [value], model)
