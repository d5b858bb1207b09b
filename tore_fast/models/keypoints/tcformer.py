"""TCFormer: vision transformer whose tokens are clusters of the image (CVPR 2022, arXiv:2204.08680).

In: images [B, 3, H, W] (ImageNet mean/std); out: class logits, or the `Tokens` of four stages for the heads of
models/keypoints/tcformer_heads.py. Layers: layers/ctm.py, layers/dynamic_block.py, layers/mta.py. State-dict keys are
the official ones; official files load through models/keypoints/layouts.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...layers._tokens import Tokens, grid_tokens
from ...layers.ctm import CTM, ConvDownsample
from ...layers.dynamic_block import TCBlock
from ...layers.token_conv import tokens_to_map
from ...ops._cluster_args import FORMS
from .._config import make_config
from .._registry import PaperRow, model_facts, register_models

DEPTHS = {"light": (2, 2, 2, 2), "base": (3, 4, 6, 3), "large": (3, 8, 27, 3)}
REDUCTIONS = ("dpc", "topk", "conv")


@dataclass(frozen=True)
class TCFormerConfig:
    """Backbone and classifier of TCFormer (paper Table A1).

    `reduction`: "dpc" (the paper's), "topk" (centres by learned score), "conv" (strided convolutions, "w/o CTM").
    `parts`: rows and columns of parts of each CTM, e.g. (4, 4, 2, 2, 1, 1); () clusters the whole image at once.
    """

    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    depths: tuple[int, ...] = DEPTHS["base"]
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    sample_ratios: tuple[float, ...] = (0.25, 0.25, 0.25)
    k: int = 5
    qkv_bias: bool = True
    num_classes: int = 1000  # 0: no head, the model returns its tokens
    in_chans: int = 3
    drop_path_rate: float = 0.0
    block_norm_eps: float = 1e-6
    stem_norm_eps: float = 1e-5  # 1e-6 in mmpose
    reduction: str = "dpc"
    parts: tuple[int, ...] = ()
    knn_form: str = "released"  # of the CTMs' density: the official code's, or "printed" (the paper's equations 1, 2)

    def __post_init__(self) -> None:
        n = len(self._sequence("embed_dims"))
        counts = {"num_heads": n, "mlp_ratios": n, "depths": n, "sr_ratios": n, "sample_ratios": n - 1}
        for name, count in counts.items():
            if len(self._sequence(name)) != count:
                raise ValueError(
                    f"TCFormerConfig: {name} must have {count} entries ({n} stages in embed_dims), got "
                    f"{getattr(self, name)}"
                )
        if not all(0 < r <= 1 for r in self.sample_ratios):
            raise ValueError(f"TCFormerConfig: sample_ratios must lie in (0, 1], got {self.sample_ratios}")
        if self.k < 1:
            raise ValueError(f"TCFormerConfig: k must be at least 1, got {self.k}")
        if not isinstance(self.drop_path_rate, (int, float)) or not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"TCFormerConfig: drop_path_rate must be a number in [0, 1), got {self.drop_path_rate!r}")
        if self.knn_form not in FORMS:
            raise ValueError(f"TCFormerConfig: knn_form must be one of {FORMS}, got {self.knn_form!r}")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"TCFormerConfig: reduction must be one of {REDUCTIONS}, got {self.reduction!r}")
        self._check_parts(2 * (n - 1))

    def _sequence(self, name: str) -> tuple:
        value = getattr(self, name)
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"TCFormerConfig: {name} must be a list of numbers like 1,2,3,4, got {value!r}")
        return tuple(value)

    def _check_parts(self, count: int) -> None:
        parts = self._sequence("parts")
        if not parts:
            return
        if len(parts) != count or self.reduction != "dpc":
            raise ValueError(
                f"TCFormerConfig: parts needs {count} numbers (rows, columns per CTM) and reduction='dpc', "
                f"got {parts} with {self.reduction!r}"
            )
        if min(parts) < 1:
            raise ValueError(f"TCFormerConfig: parts must be positive, got {parts}")
        if any(fine % coarse for fine, coarse in zip(parts, parts[2:])):
            raise ValueError(f"TCFormerConfig: parts of a CTM must divide into those of the next one, got {parts}")

    @property
    def part_levels(self) -> list[tuple[tuple[int, int], ...]]:
        """For every CTM: its parts and those of the later CTMs, coarsest (last) first, its own last."""
        pairs = list(zip(self.parts[::2], self.parts[1::2]))
        return [tuple(reversed(pairs[i:])) for i in range(len(pairs))] or [()] * (len(self.embed_dims) - 1)


class PatchEmbed(nn.Module):
    """Convolution 7x7 stride 4 and LayerNorm: image -> grid tokens."""

    def __init__(self, in_chans: int, dim: int, norm_eps: float):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 7, stride=4, padding=3)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, image: Tensor) -> Tokens:
        y = self.proj(image)
        return grid_tokens(self.norm(y.flatten(2).transpose(1, 2)), (y.shape[2], y.shape[3]))


@model_facts(task="classify", family="tcformer")
class TCFormer(nn.Module):
    """TCFormer backbone with an optional classifier.

    Example:
        >>> import torch
        >>> model = TCFormer(TCFormerConfig(num_classes=10))
        >>> model(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 10])
        >>> [t.num_tokens for t in model.forward_features(torch.rand(2, 3, 224, 224))]
        [3136, 784, 196, 49]
    """

    config_class = TCFormerConfig

    def __init__(self, config: TCFormerConfig | None = None, **fields: Any):
        super().__init__()
        self.config = config = make_config(type(self), config, fields)
        dims = config.embed_dims
        self.num_stages = len(dims)
        self.patch_embed1 = PatchEmbed(config.in_chans, dims[0], config.stem_norm_eps)
        last = max(sum(config.depths) - 1, 1)
        rates = [config.drop_path_rate * i / last for i in range(sum(config.depths))]
        for s in range(self.num_stages):
            blocks = [
                TCBlock(
                    dims[s],
                    config.num_heads[s],
                    config.mlp_ratios[s],
                    config.sr_ratios[s],
                    config.qkv_bias,
                    rates.pop(0),
                    on_grid=s == 0,
                    norm_eps=config.block_norm_eps,
                )
                for _ in range(config.depths[s])
            ]
            setattr(self, f"block{s + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{s + 1}", nn.LayerNorm(dims[s], eps=config.block_norm_eps))
            if s > 0:
                setattr(self, f"ctm{s}", self._reduction(s))
        self.head = nn.Linear(dims[-1], config.num_classes) if config.num_classes > 0 else None
        self.apply(init_weights)

    def _reduction(self, s: int) -> nn.Module:
        c = self.config
        if c.reduction == "conv":
            return ConvDownsample(c.embed_dims[s - 1], c.embed_dims[s])
        return CTM(
            c.embed_dims[s - 1],
            c.embed_dims[s],
            c.sample_ratios[s - 1],
            c.k,
            c.reduction,
            c.part_levels[s - 1],
            c.knn_form,
        )

    def forward_features(self, image: Tensor) -> list[Tokens]:
        """Tokens of every stage, after the stage's norm.

        Args:
            image: [B, 3, H, W]; any size from 32x32 with ceil(size / 4) >= 8.
        """
        if image.dim() != 4 or image.shape[1] != self.config.in_chans:
            raise ValueError(f"TCFormer: image must be [B, {self.config.in_chans}, H, W], got {list(image.shape)}")
        tokens = self.patch_embed1(image)
        stages = []
        for s in range(1, self.num_stages + 1):
            keys = None
            if s > 1:
                tokens, keys = getattr(self, f"ctm{s - 1}")(tokens)
                keys = keys if keys.score is not None else None
            for block in getattr(self, f"block{s}"):
                tokens = block(tokens, keys)
                keys = None  # only the first block sees the tokens before the merge
            tokens = tokens._replace(x=getattr(self, f"norm{s}")(tokens.x))
            stages.append(tokens)
        return stages

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Feature map [B, C_s, H_s, W_s] of every stage."""
        return [tokens_to_map(t) for t in self.forward_features(image)]

    def forward(self, image: Tensor) -> Tensor | list[Tokens]:
        """Class logits [B, num_classes]; the stages' tokens if the model has no head."""
        stages = self.forward_features(image)
        return stages if self.head is None else self.head(stages[-1].x.mean(dim=1))


def init_weights(m: nn.Module) -> None:
    """Linear: truncated normal 0.02; Conv2d: normal with fan-out scale; LayerNorm 1/0; Conv1d skips keep torch's
    default."""
    if isinstance(m, nn.Linear):
        # upstream truncates at +-2, a hundred standard deviations: a plain normal, and one that fake tensors can draw
        nn.init.normal_(m.weight, std=0.02)
    elif isinstance(m, nn.Conv2d):
        fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
        nn.init.normal_(m.weight, 0, math.sqrt(2.0 / fan_out))
    elif isinstance(m, nn.LayerNorm):
        nn.init.ones_(m.weight)
    if isinstance(m, (nn.Linear, nn.Conv2d, nn.LayerNorm)) and m.bias is not None:
        nn.init.zeros_(m.bias)


MODELS = {
    "tcformer_light": {"depths": DEPTHS["light"], "drop_path_rate": 0.1},
    "tcformer_base": {"depths": DEPTHS["base"], "drop_path_rate": 0.1},
    "tcformer_large": {"depths": DEPTHS["large"], "drop_path_rate": 0.3},
}
_COUNTED = "parameters: official README; multiply-adds: official counter"
PAPERS = {
    "tcformer_light": PaperRow(14.2, 3.84, _COUNTED),
    "tcformer_base": PaperRow(25.6, 5.83, _COUNTED, "the paper prints 5.9"),
    "tcformer_large": PaperRow(62.8, 12.15, _COUNTED),
}
register_models(TCFormer, MODELS, PAPERS, tags=("classification", "imagenet"))
