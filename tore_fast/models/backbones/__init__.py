"""Convolutional trunks from timm, wrapped so that their keys are the official checkpoints' (see each file).

In: images [B, 3, H, W]; out: a feature map [B, channels, H / stride, W / stride] for
models/{fastmetro,tore,metro,...}.py.
"""

from __future__ import annotations

from torch import nn

from .trunks import EfficientNetB0, HRNetW64, ResNet50, TimmTrunk

TRUNKS = {"resnet50": ResNet50, "hrnet_w64": HRNetW64, "efficientnet_b0": EfficientNetB0}

__all__ = ["TRUNKS", "EfficientNetB0", "HRNetW64", "ResNet50", "TimmTrunk", "create_backbone"]


def create_backbone(name: str, stride: int = 32, pretrained: bool = False, dilated: bool = False) -> nn.Module:
    """Trunk with attributes `num_channels` and `stride`.

    Args:
        name: "resnet50", "hrnet_w64", "efficientnet_b0" (official layouts, stride 32) or any timm model that offers
            features at `stride`.
        stride: 32, 16 or 8; a timm trunk is cut after its last stage of that stride.
        pretrained: load timm's ImageNet weights (downloads them).
        dilated: keep all stages of a timm trunk and reach `stride` by dilating the last ones.

    Raises:
        ValueError: unknown name, or a stride the trunk does not offer.
    """
    if name in TRUNKS and stride == 32:
        return TRUNKS[name](pretrained)
    return TimmTrunk(name, stride, pretrained, dilated)
