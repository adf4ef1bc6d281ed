"""Names, weights and normalisation."""

import pytest
import torch

import minica
from minica import backbones


def test_packaged_weights_are_imagenet_weights():
    """The real network on a drawing it can recognise is out of reach here; what can be checked is that nothing is random."""
    model = minica.create_backbone("tf_efficientnet_lite0", num_classes=1000).eval()
    again = minica.create_backbone("tf_efficientnet_lite0", num_classes=1000)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert model.bn1.running_var.std() > 0.1, "statistics of real images, not the ones of a fresh net"
    assert minica.normalization(model) == {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    small = minica.create_backbone("tf_efficientnet_lite0", num_classes=3)
    assert small(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    assert torch.equal(small.conv_stem.weight, model.conv_stem.weight)


def test_damaged_packaged_weights_are_refused(monkeypatch, tmp_path):
    package = tmp_path / "broken_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / backbones.PACKAGED_WEIGHTS[1]).write_bytes(b"not weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backbones, "PACKAGED_WEIGHTS", ("broken_weights", backbones.PACKAGED_WEIGHTS[1]))
    with pytest.raises(minica.backbones.WeightsUnavailable, match="missing or damaged; reinstall"):
        minica.create_backbone("tf_efficientnet_lite0")


def test_unknown_names_get_close_ones():
    with pytest.raises(ValueError, match="unknown backbone 'resnet5O'; did you mean .*resnet50"):
        minica.create_backbone("resnet5O")


def test_weights_that_were_never_published():
    with pytest.raises(ValueError, match="ResNet50 trained on ImageNet-21k.*resnet50-in21k-bit-m"):
        minica.create_backbone("resnet50-in21k")


def test_unreachable_weights_name_what_is_here(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="could not be loaded.*Available without a network: 'tf_efficientnet_lite0'"):
        minica.create_backbone("test_resnet")


def test_paper_aliases_are_timm_names():
    import timm

    for name, timm_name in backbones.ALIASES.items():
        assert timm.is_model_pretrained(timm_name), f"{name} -> {timm_name}"
        assert set(minica.normalization(name)) == {"mean", "std"}
    assert minica.normalization("resnet50-clip")["mean"] == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert minica.normalization("resnet50-in21k-bit-m")["mean"] == (0.5, 0.5, 0.5)


def test_clip_gets_a_classifier_behind_its_frozen_projection():
    model = minica.create_backbone("resnet50-clip", num_classes=7, pretrained=False).eval()
    minica.tune(model, "linear")
    assert minica.count(model)["trainable"] == (1024 + 1) * 7
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 7)
    assert not model.head.proj.weight.requires_grad
