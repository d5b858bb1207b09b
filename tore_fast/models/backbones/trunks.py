"""The trunks: ResNet-50, HRNet-W64-C, EfficientNet-b0 as the four official repositories use them, and any timm model.

Layers and initialisation are timm's; the wrappers only choose where to stop and how the children are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn


def _timm(name: str, pretrained: bool, **options: Any) -> Any:
    import timm  # with torchvision half of what importing a model costs, and most families have no trunk

    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except RuntimeError as e:  # timm's "Unknown model"
        if "nknown model" not in str(e):
            raise
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"create_backbone: timm has no model {name!r}; near names: {near}") from e
    except OSError as e:  # no network and not in the cache
        if not pretrained:
            raise
        raise OSError(
            f"pretrained_backbone: timm's ImageNet weights of {name} are not in the local cache and cannot be fetched "
            f"({type(e).__name__}); copy the cache ($HF_HOME) from a machine that has them, or start without them"
        ) from e


class ResNet50(nn.Sequential):
    """conv1, bn1, relu, maxpool, layer1..4 as numbered children 0..7: [B, 3, H, W] -> [B, 2048, H/32, W/32]."""

    num_channels, stride = 2048, 32

    def __init__(self, pretrained: bool = False):
        m = _timm("resnet50", pretrained)
        super().__init__(m.conv1, m.bn1, m.act1, m.maxpool, m.layer1, m.layer2, m.layer3, m.layer4)


class HRNetW64(nn.Module):
    """HRNet-W64-C up to final_layer: [B, 3, H, W] -> [B, 2048, H/32, W/32]; keys of the original classification net.

    The original's unused `classifier` is left out (2.05 M of the 128.06 M parameters that the papers count).
    """

    num_channels, stride = 2048, 32

    if TYPE_CHECKING:  # timm's children, added by name

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, pretrained: bool = False):
        super().__init__()
        m = _timm("hrnet_w64", pretrained)
        for name, child in m.named_children():
            if name not in ("classifier", "global_pool", "head_drop"):
                self.add_module(name, child)

    def grid_features(self, x: Tensor) -> Tensor:
        """[B, 1024, H/32, W/32]: all four resolutions summed, before final_layer (Mesh Graphormer's grid tokens)."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        branches = self.stage2([t(x) for t in self.transition1])
        for transition, stage in ((self.transition2, self.stage3), (self.transition3, self.stage4)):
            branches = stage(
                [branches[i] if isinstance(t, nn.Identity) else t(branches[-1]) for i, t in enumerate(transition)]
            )
        y = self.incre_modules[0](branches[0])
        for i, down in enumerate(self.downsamp_modules, start=1):
            y = self.incre_modules[i](branches[i]) + down(y)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.final_layer(self.grid_features(x))


class EfficientNetB0(nn.Module):
    """EfficientNet-b0 with TensorFlow's "same" padding up to the head convolution: -> [B, 1280, H/32, W/32].

    This is efficientnet_pytorch's endpoint `reduction_6`. Keys are timm's; mesh/layouts.py maps the official ones.
    """

    num_channels, stride = 1280, 32

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, pretrained: bool = False):
        super().__init__()
        m = _timm("tf_efficientnet_b0", pretrained)
        for name in ("conv_stem", "bn1", "blocks", "conv_head", "bn2"):
            self.add_module(name, getattr(m, name))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(x)))))


class TimmTrunk(nn.Module):
    """Last feature map of stride `stride` of any timm model; later layers are not built (or dilated, if asked)."""

    def __init__(self, name: str, stride: int, pretrained: bool = False, dilated: bool = False):
        super().__init__()
        options = {"output_stride": stride} if dilated else {}
        strides = _timm(name, False, features_only=True, **options).feature_info.reduction()
        if stride not in strides:
            raise ValueError(f"create_backbone: {name} has feature maps of stride {strides}, not {stride}")
        last = max(i for i, s in enumerate(strides) if s == stride)
        self.features = _timm(name, pretrained, features_only=True, out_indices=(last,), **options)
        self.num_channels, self.stride = self.features.feature_info.channels()[-1], stride

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.features(x)[-1]
        return found
