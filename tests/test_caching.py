"""Adapters in some stages only, and training on the kept output of what is frozen before them."""

import copy
import re

import pytest
import torch
from nets import net, same, snapshot
from torch.utils.data import TensorDataset

import minica
from minica.fast.caching import _frozen_prefix

LAST = {
    "basic": [3, 4],
    "bit": [3, 4],
    "convnext": [3, 4],
    "efficientnet": [6, 7],
    "regnet": [4],
    "clip": [4],
    "mobilenetv4": [4, 5],
}


def pictures(n=12, dtype=torch.float32, size=64):
    images = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images.to(dtype), torch.arange(n) % 5)


def train(model, data, **options):
    history = minica.fit(model, data, **{"epochs": 2, "batch_size": 4, "progress": False, **options})
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def count_images(module):
    """A list that grows by each number of images that a module really takes; trial runs without numbers do not count."""
    seen = []
    module.register_forward_pre_hook(lambda module, args: None if args[0].is_meta else seen.append(len(args[0])))
    return seen


# Stages ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAST)
def test_stages_divide_the_adapters(family):
    model = net(family)
    everywhere = list(minica.adapters(minica.adapt(model, "residual_parallel")))
    by_stage = []
    with pytest.raises(ValueError, match=r"stages must be some of 1 to \d+, which this network has; got \[0\]") as refused:
        minica.adapt(minica.detach(model), "residual_parallel", stages=[0])
    stages = int(re.search(r"1 to (\d+)", str(refused.value)).group(1))
    for stage in range(1, stages + 1):
        minica.adapt(minica.detach(model), "residual_parallel", stages=[stage])
        by_stage.append(list(minica.adapters(model)))
    assert all(by_stage) and sum(by_stage, []) == everywhere
    minica.adapt(minica.detach(model), "residual_parallel", stages=range(1, stages + 1))
    assert list(minica.adapters(model)) == everywhere


def test_what_stands_between_two_stages_belongs_to_the_later():
    places = list(minica.adapters(minica.adapt(net("convnext"), stages=(4,))))
    assert places == ["stages.3.downsample.1", "stages.3.blocks.0.conv_dw", "stages.3.blocks.1.conv_dw"]
    assert "head.proj" in minica.adapters(minica.adapt(net("clip"), stages=[4]))


@pytest.mark.parametrize("stages", [[], 3, "3", [4, 5], [2.5]])
def test_stages_that_are_not_there(stages):
    model = net("basic")
    before = snapshot(model)
    with pytest.raises(ValueError, match=re.escape(f"stages must be some of 1 to 4, which this network has; got {stages!r}")):
        minica.adapt(model, stages=stages)
    assert same(before, model.state_dict())


def test_stages_are_saved_with_the_adapters(tmp_path):
    model = minica.tune(net("basic"), "conv_adapter", stages=(4, 3))
    minica.save_adapter(model, tmp_path)
    loaded = minica.load_adapter(net("basic"), tmp_path)
    assert minica.adapters(loaded).keys() == minica.adapters(model).keys()
    assert {place.partition(".")[0] for place in minica.adapters(loaded)} == {"layer3", "layer4"}


# The cache ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family in LAST if family != "bit"])  # which takes long
@pytest.mark.parametrize("method", ["linear", "conv_adapter"])
def test_the_same_numbers(family, method):
    """In double precision, where rounding neither hides a difference nor makes one."""
    data, val = pictures(dtype=torch.double), pictures(7, torch.double)
    options = {"scheme": "residual_parallel", "stages": LAST[family]} if method == "conv_adapter" else {}
    plain = minica.tune(net(family).double(), method, **options)
    cached, before = copy.deepcopy(plain), snapshot(plain)
    histories = [train(model, data, val=val, cache=model is cached) for model in (plain, cached)]
    for one, other in zip(*histories, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-6) and one["val_n"] == other["val_n"] == 7
    assert not same(before, plain.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[key], value, rtol=1e-6, atol=1e-8)
    # And the network that comes back is a whole one.
    torch.testing.assert_close(cached(data.tensors[0]), plain(data.tensors[0]), rtol=1e-6, atol=1e-8)


def test_the_prefix_runs_once():
    model = minica.tune(net("basic"), "conv_adapter", scheme="residual_parallel", stages=[3, 4])
    stem, stage2, stage3 = (count_images(model.get_submodule(name)) for name in ("conv1.0", "layer2.0.conv1", "layer3.0.conv1"))
    train(model, pictures(), val=pictures(6), epochs=5, cache=True)
    found = 3 * 4  # finding where the prefix ends takes three passes of one batch
    assert sum(stem) == sum(stage2) == found + 12 + 6
    # And one more that shows that the rest gives the same; before the first step, one image of each set is tried.
    assert sum(stage3) == found + 4 + 2 + 5 * (12 + 6)


@pytest.mark.parametrize(
    ("method", "options", "cut"),
    [
        ("linear", {}, "fc"),
        ("conv_adapter", {"stages": [4], "scheme": "residual_sequential"}, "layer4.0"),
        ("conv_adapter", {"stages": [2, 4]}, "layer2.0"),
        ("conv_adapter", {}, "layer1.0"),
        ("prompt", {"image_size": 64}, None),
        ("full", {}, None),
        ("norm", {}, None),
    ],
)
def test_where_the_prefix_ends(method, options, cut):
    model = minica.tune(net("basic"), method, **options)
    before, hooks = snapshot(model), sum(len(module._forward_pre_hooks) for module in model.modules())
    found, prefix = _frozen_prefix(model, pictures().tensors[0])
    name = {module: name for name, module in model.named_modules()}.get(found)
    # The first convolution of a block takes what the block takes, so the prefix may end there as well.
    assert name in (cut, f"{cut}.conv1") and bool(prefix) == (cut is not None)
    assert not any(weight.requires_grad for module in prefix for weight in module.parameters())
    assert same(before, model.state_dict()) and hooks == sum(len(module._forward_pre_hooks) for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_dropout_in_the_prefix_is_not_frozen():
    model = minica.tune(net("basic"), "linear")
    model.layer2.add_module("dropout", torch.nn.Dropout(0.5))
    assert _frozen_prefix(model, pictures().tensors[0]) == (None, [])
    other = minica.tune(net("basic"), "conv_adapter", stages=[2])
    other.layer2.add_module("dropout", torch.nn.Dropout(0.5))
    assert _frozen_prefix(other, pictures().tensors[0])[1]


def test_augmented_images_are_refused(monkeypatch):
    class Flipped(TensorDataset):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image.flip(-1) if torch.rand(()) < 0.5 else image, label

    model = minica.tune(net("basic"), "linear")
    with pytest.raises(ValueError, match="cache=True needs the same images in every epoch.*augment='none', or train without"):
        train(model, Flipped(*pictures(40).tensors), cache=True)
    train(minica.tune(net("basic"), "full"), Flipped(*pictures(8).tensors), cache=True)  # nothing is kept, nothing refused
    monkeypatch.setattr("minica.fast.caching.psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(ValueError, match=r"would need .* GB for maps of shape .*; adapt later stages only"):
        train(model, pictures(), cache=True)


def test_a_cached_run_is_interrupted_and_resumed(tmp_path):
    whole, part = (minica.tune(net("basic"), "linear") for _ in range(2))
    history, steps = train(whole, pictures(), epochs=3, cache=True), []

    def stop(module, args):
        steps.append(torch.is_grad_enabled())
        if steps[-1] and sum(steps) == 5:  # in the second epoch
            raise KeyboardInterrupt

    part.fc.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train(part, pictures(), epochs=3, cache=True, folder=tmp_path)
    assert not any("forward" in vars(module) for module in part.modules()), "the network is whole after an interrupt"
    assert train(part, pictures(), epochs=3, cache=True, folder=tmp_path) == history
    assert same(whole.state_dict(), part.state_dict())
