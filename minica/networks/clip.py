"""A classifier for timm's CLIP ResNets, whose attention pool ends in a projection that belongs to the pre-trained weights."""

from __future__ import annotations

from torch import Tensor, nn


def add_classifier(model: nn.Module, num_classes: int) -> nn.Module:
    """Put a new linear classifier behind the projection, as ``head.classifier``, without renaming a key of the network.

    timm calls the projection the classifier and would replace it.  With 0 classes the embedding stays the output.
    """
    if num_classes > 0:
        weight = model.head.proj.weight
        model.head.classifier = nn.Linear(weight.shape[0], num_classes, device=weight.device, dtype=weight.dtype)
        model.head.register_forward_hook(_classify)
        model.num_classes = num_classes
    return model


def _classify(head: nn.Module, args: tuple, embedding: Tensor) -> Tensor:
    return head.classifier(embedding)
