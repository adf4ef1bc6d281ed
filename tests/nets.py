"""Small networks of every family, made from timm's own constructors, and what tests do to them."""

import timm
import torch
from torch import nn

import minica

# name -> (timm name, options, image size).  Real architectures, narrow or shallow where timm's constructor allows it.
NETS = {
    "basic": ("test_resnet", {}, 64),
    "bottleneck": ("resnet26", dict(channels=(8, 16, 32, 64)), 64),
    "anti-alias": ("resnetaa50d", dict(channels=(8, 16, 32, 64)), 64),
    "bit": ("resnetv2_50x1_bit", {}, 64),
    "convnext": ("test_convnext", {}, 64),
    "regnet": ("regnetx_002", {}, 64),
    "efficientnet": ("tf_efficientnet_lite0", {}, 64),
    "edge": ("test_efficientnet", {}, 64),
    "mobilenet": ("mobilenetv3_small_050", {}, 64),
    "mobilenetv4": ("mobilenetv4_conv_small_050", {}, 64),
    "mixnet": ("mixnet_s", {}, 64),
    "clip": ("resnet50_clip", {}, 64),
    "swin": ("swin_tiny_patch4_window7_224", dict(img_size=64, window_size=2, depths=(1, 1, 2, 1), embed_dim=24), 64),
}
TINY = ("test_resnet", "test_convnext", "test_efficientnet")  # for the slow tools
FAMILIES = tuple(NETS)


def net(name: str, num_classes: int = 5) -> nn.Module:
    """The network in evaluation mode, its all-zero gains set to one as a trained network's would not be zero."""
    torch.manual_seed(0)
    architecture, options, _ = NETS.get(name, (name, {}, 64))
    if name == "clip":  # with a classifier behind its frozen projection
        model = minica.create_backbone(architecture, num_classes=num_classes, pretrained=False)
    else:
        model = timm.create_model(architecture, num_classes=num_classes, **options)
    with torch.no_grad():
        for module in model.modules():
            gain = getattr(module, "weight", None)
            if isinstance(gain, nn.Parameter) and gain.dim() == 1 and not gain.any():
                gain.fill_(1.0)
            scale = getattr(module, "gamma", None)  # ConvNeXt's layer scale starts at 1e-6
            if isinstance(scale, nn.Parameter):
                scale.fill_(1.0)
    return model.eval()


def images(name: str, batch: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
    side = NETS.get(name, (None, None, 64))[2]
    return torch.randn(batch, 3, *(size or (side, side)), generator=torch.Generator().manual_seed(1))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def disturb(model: nn.Module) -> nn.Module:
    """Move everything that trains, so that adapters that start as the identity no longer are."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
