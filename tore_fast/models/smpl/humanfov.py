"""HumanFoV of CameraHMR: vertical field of view of a whole image.

In: images letterboxed to 256x256 (geometry/warp.py:letterbox), ImageNet-normalised; out: angles [B, 2] in radians,
[:, 1] the vertical one, for geometry/camera.py:focal_from_fov. The trunk is HRNet-W48 whose four branches are brought
to 1/32 by stride-2 convolutions. `fc2` and `backbone.final_layer` only exist so that official files load strictly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._config import make_config
from .._registry import model_facts, register_models

CHANNELS = (48, 96, 192, 384)
BLOCKS = 4  # residual blocks per branch
MODULES = {2: 1, 3: 4, 4: 3}  # fusion modules per stage


def _conv(cin: int, cout: int, kernel: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class _Residual(nn.Module):
    """Basic (two 3x3) or bottleneck (1x1, 3x3, 1x1 to four times the width) block."""

    def __init__(self, cin: int, width: int, bottleneck: bool):
        super().__init__()
        cout = 4 * width if bottleneck else width
        shape = (
            ((cin, width, 1), (width, width, 3), (width, cout, 1))
            if bottleneck
            else ((cin, width, 3), (width, cout, 3))
        )
        for i, (a, b, k) in enumerate(shape, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, k, 1, k // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.count = len(shape)
        self.downsample = _conv(cin, cout, 1, relu=False) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = y.relu()
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def _down_chain(cin: int, cout: int, steps: int) -> nn.Sequential:
    """steps stride-2 convolutions; only the last changes the width and has no ReLU."""
    return nn.Sequential(*(_conv(cin, cout if s == steps - 1 else cin, 3, 2, relu=s < steps - 1) for s in range(steps)))


def _up(cin: int, cout: int, steps: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout), nn.Upsample(scale_factor=2**steps, mode="nearest")
    )


class _Module(nn.Module):
    """Branches in parallel, then every branch receives the sum of all at its scale."""

    def __init__(self, n: int):
        super().__init__()
        c = CHANNELS[:n]
        self.branches = nn.ModuleList(nn.Sequential(*(_Residual(w, w, False) for _ in range(BLOCKS))) for w in c)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(
                _up(c[j], c[i], j - i) if j > i else nn.Identity() if j == i else _down_chain(c[j], c[i], i - j)
                for j in range(n)
            )
            for i in range(n)
        )

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = [branch(x) for branch, x in zip(self.branches, xs)]
        out = []
        row: Any
        for row in self.fuse_layers:
            total = row[0](xs[0])
            for layer, x in zip(row[1:], xs[1:]):
                total = total + layer(x)
            out.append(total.relu())
        return out


class HRNetW48(nn.Module):
    """HRNet-W48 in the pose layout: [B, 3, H, W] -> [B, 720] mean of the four branches at 1/32."""

    downsample_stage_1: nn.Module
    downsample_stage_2: nn.Module
    downsample_stage_3: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(*(_Residual(64 if i == 0 else 256, 64, True) for i in range(4)))
        c = CHANNELS
        self.transition1 = nn.ModuleList([_conv(256, c[0], 3), nn.Sequential(_conv(256, c[1], 3, 2))])
        self.stage2 = nn.Sequential(*(_Module(2) for _ in range(MODULES[2])))
        self.transition2 = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Sequential(_conv(c[1], c[2], 3, 2))])
        self.stage3 = nn.Sequential(*(_Module(3) for _ in range(MODULES[3])))
        self.transition3 = nn.ModuleList([*(nn.Identity() for _ in range(3)), nn.Sequential(_conv(c[2], c[3], 3, 2))])
        self.stage4 = nn.Sequential(*(_Module(4) for _ in range(MODULES[4])))
        self.final_layer = nn.Conv2d(c[0], 24, 1)  # unused
        for i in range(3):
            chain = [layer for _ in range(3 - i) for layer in _conv(c[i], c[i], 3, 2)]
            setattr(self, f"downsample_stage_{i + 1}", nn.Sequential(*chain))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer1(self.bn2(self.conv2(x)).relu())
        xs = self.stage2([t(x) for t in self.transition1])
        xs = self.stage3([*xs, self.transition2[2](xs[-1])])
        xs = self.stage4([*xs, self.transition3[3](xs[-1])])
        xs = [self.downsample_stage_1(xs[0]), self.downsample_stage_2(xs[1]), self.downsample_stage_3(xs[2]), xs[3]]
        return torch.cat([x.mean((2, 3)) for x in xs], 1)


@dataclass(frozen=True)
class HumanFoVConfig:
    dropout: float = 0.2


@model_facts(task="camera", family="fasthmr", crop="letterbox")
class HumanFoV(nn.Module):
    """Field-of-view net (FLNet): [B, 3, 256, 256] -> [B, 2] (horizontal, vertical) in radians."""

    config_class = HumanFoVConfig

    def __init__(self, config: HumanFoVConfig | None = None, **fields: Any):
        super().__init__()
        self.config = make_config(type(self), config, fields)
        self.backbone = HRNetW48()
        self.fc1 = nn.Linear(sum(CHANNELS), 1024)
        self.fc2 = nn.Linear(1024, 1024)  # unused
        self.fc3 = nn.Linear(1024, 2)
        self.dropout = nn.Dropout(self.config.dropout)

    def forward(self, img: Tensor) -> Tensor:
        if img.dim() != 4 or img.shape[1] != 3 or img.shape[2] % 32 or img.shape[3] % 32:
            raise ValueError(f"HumanFoV: img must be [B, 3, H, W] with H and W multiples of 32, got {list(img.shape)}")
        return self.fc3(self.dropout(self.fc1(self.backbone(img))))


register_models(HumanFoV, {"humanfov": {}}, input_shape=(3, 256, 256))
