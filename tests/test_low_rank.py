"""LoRA, LoHa and LoKr of peft as methods of a run: of the adapters' size, and trained by the same loop."""

import pytest
from nets import images, net, same, snapshot
from torch import nn

import minica
from minica import experiments
from minica.experiments.low_rank import low_rank


def trained(model):
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_it_has_about_as_many_parameters_as_adapters(kind):
    adapters = trained(minica.adapt(net("resnet50"), "conv_parallel", 4))
    model = low_rank(net("resnet50"), kind, 4)
    assert 0.8 < trained(model) / adapters < 1.25
    keys = {key for key, weight in model.named_parameters() if weight.requires_grad}
    assert all("conv2" in key or "fc" in key for key in keys)


def test_lokrs_factors_end_before():
    adapters = trained(minica.adapt(net("resnet50"), "conv_parallel", 4))
    model = low_rank(net("resnet50"), "lokr", 4)
    assert 0 < trained(model) < adapters
    widest = {module.weight.shape[0] for name, module in model.named_modules() if name.endswith("conv2.base_layer")}
    assert model.peft_config["default"].r <= max(widest), "no rank that changes nothing"
    assert model(images("resnet50")).shape == (2, 5)


@pytest.mark.parametrize(("name", "changed"), [("swin", "Linear"), ("bit", "StdConv2d"), ("test_convnext", "Conv2d")])
def test_what_stands_for_convolutions(name, changed):
    """Attention's linear layers, standardised and depth-wise convolutions."""
    model = low_rank(net(name), "loha")
    layers = {type(module.base_layer).__name__ for module in model.modules() if hasattr(module, "base_layer")}
    assert layers == {changed}
    model(images(name)).sum().backward()
    assert any(weight.grad is not None and weight.grad.any() for key, weight in model.named_parameters() if "hada" in key)


def test_convolutions_with_tensorflows_padding_are_left_out():
    model = low_rank(net("efficientnet"), "loha")
    changed = [key for key, module in model.named_modules() if hasattr(module, "base_layer")]
    assert changed and all(type(model.get_submodule(name).base_layer) is nn.Conv2d for name in changed)
    assert model(images("efficientnet")).shape == (2, 5)
    with pytest.raises(ValueError, match="unknown kind 'dora'; choose one of lora, loha"):
        low_rank(net("efficientnet"), "dora")


def test_a_run_trains_nothing_else(monkeypatch):
    seen = {}
    build = experiments.runs.create_backbone

    def watched(*arguments, **options):
        seen["model"] = build(*arguments, **options)
        seen["before"] = snapshot(seen["model"])
        return seen["model"]

    monkeypatch.setattr(experiments.runs, "create_backbone", watched)
    config = dict(data="shapes", task="position", size=32, train_size=32, backbone="tf_efficientnet_lite0", method="loha")
    record = experiments.run(config | dict(options={}, lr=1e-2, weight_decay=0.0, epochs=1, batch_size=8, seed=0), False)
    after = {key.replace(".base_layer", ""): value for key, value in seen["model"].state_dict().items()}
    kept = {key for key in seen["before"] if not key.startswith("classifier")}
    assert same({key: seen["before"][key] for key in kept}, {key: after[key] for key in kept})
    assert record["trainable"] > 0 and 0 <= record["test"]["accuracy"] <= 1
