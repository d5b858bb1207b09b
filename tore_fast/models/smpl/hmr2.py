"""HMR2.0 (4D-Humans): ViT-H tokens -> one query token -> SMPL pose, shape, camera.

In: square crops [B, 3, 256, 256] of geometry/warp.py; out: `SmplOutput`, whose `token` feeds models/motion/denoiser.py
and whose rotations and betas feed body/. Depth and token count are config fields, so the ECLM + Mask-ToMe form
(`fasthmr_hmr2`) is the same class with 28 blocks and 90 tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...geometry.camera import CROP_FOCAL_PX, CROP_PX, full_translation
from ...geometry.rotation import axis_angle_to_matrix, rot6d_to_matrix
from ...layers.decoder_head import CrossAttentionDecoder, DecoderConfig
from ...layers.mask_tome import MergeConfig, mask_coverage
from ...layers.prepared import Prepared
from .._config import make_config
from .._outputs import SmplOutput
from .._registry import PaperRow, model_facts, register_models
from ..backbones.vit import ViT, ViTConfig

SIDE_CUT = 32  # columns dropped left and right of the square crop


@dataclass(frozen=True)
class HMR2Config:
    """All sizes of HMR2.0; defaults are the published ViT-H model.

    `img_size` is what the network sees of a square crop of side img_size[0]; `box_margin` is how much larger than the
    person's (grown) box that square was in training.
    """

    img_size: tuple[int, int] = (256, 192)
    box_margin: float = 1.0
    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.55
    stem: str = "patch"  # or "conv" (ViTConfig)
    decoder_depth: int = 6
    decoder_heads: int = 8
    decoder_dim_head: int = 64
    decoder_mlp_dim: int = 1024
    decoder_dim: int = 1024
    query: str = "zero"  # or "mean_shape"
    joint_rep: str = "6d"  # or "aa"
    ief_iters: int = 1
    num_body_joints: int = 23
    num_betas: int = 10
    keep_tokens: int | None = None  # None: no merging
    merge_per_block: int = 40
    merge_r: tuple[int, ...] | None = None
    prop_attn: bool = True
    merge_order: str = "position"  # or the paper's "index", "tome"
    merge_rounds: str = "capped"  # or "paper"
    merge_person_share: float = 0.85
    merge_src: str = "even"
    merge_avg: str = "size"
    person_threshold: float = 0.1

    def vit(self) -> ViTConfig:
        return ViTConfig(
            img_size=(self.img_size[0], self.img_size[1]),
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            drop_path_rate=self.drop_path_rate,
            stem=self.stem,
        )

    def decoder(self) -> DecoderConfig:
        return DecoderConfig(
            depth=self.decoder_depth,
            heads=self.decoder_heads,
            dim_head=self.decoder_dim_head,
            mlp_dim=self.decoder_mlp_dim,
            dim=self.decoder_dim,
            context_dim=self.embed_dim,
        )

    def merging(self) -> MergeConfig | None:
        if self.keep_tokens is None and self.merge_r is None:
            return None
        return MergeConfig(
            keep=self.keep_tokens,
            per_block=self.merge_per_block,
            r=self.merge_r,
            prop_attn=self.prop_attn,
            order=self.merge_order,
            rounds=self.merge_rounds,
            person_share=self.merge_person_share,
            src=self.merge_src,
            avg=self.merge_avg,
            person_threshold=self.person_threshold,
        )


class SMPLHead(nn.Module):
    """Cross-attention decoder and linear read-outs added to the mean parameters.

    Args:
        cfg: decoder sizes. query: "zero" (one 0), "mean_shape" (the current estimate) or "bbox" (CameraHMR: box token +
        mean parameters). joint_rep: "6d" or "aa". ief_iters: read-outs added up this many times.
        keypoints: auxiliary 2D key points (0: none).
    """

    def __init__(
        self,
        cfg: DecoderConfig,
        query: str = "zero",
        joint_rep: str = "6d",
        ief_iters: int = 1,
        num_body_joints: int = 23,
        num_betas: int = 10,
        keypoints: int = 0,
    ):
        super().__init__()
        if query not in ("zero", "mean_shape", "bbox"):
            raise ValueError(f"SMPLHead: query must be 'zero', 'mean_shape' or 'bbox', got {query!r}")
        if joint_rep not in ("6d", "aa"):
            raise ValueError(f"SMPLHead: joint_rep must be '6d' or 'aa', got {joint_rep!r}")
        self.query, self.joint_rep, self.ief_iters = query, joint_rep, ief_iters
        self.num_joints, self.num_keypoints = num_body_joints + 1, keypoints
        npose = self.num_joints * (6 if joint_rep == "6d" else 3)
        state = npose + num_betas + 3
        width = {"zero": 1, "mean_shape": state, "bbox": 3 + state}[query]
        self.transformer = CrossAttentionDecoder(width, cfg, zero_query=query == "zero")
        self.decpose = nn.Linear(cfg.dim, npose)
        self.decshape = nn.Linear(cfg.dim, num_betas)
        self.deccam = nn.Linear(cfg.dim, 3)
        if keypoints:
            self.deckp = nn.Linear(cfg.dim, 2 * keypoints)
        self.init_body_pose: Tensor
        self.init_betas: Tensor
        self.init_cam: Tensor
        self.register_buffer("init_body_pose", torch.zeros(1, npose))
        self.register_buffer("init_betas", torch.zeros(1, num_betas))
        self.register_buffer("init_cam", torch.tensor([[0.9, 0.0, 0.0]]))
        if joint_rep == "6d":
            self.init_body_pose.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(self.num_joints)[None])
            self.init_body_pose[:, 4] = -1.0  # upright in camera axes (y down), as in HMR's mean parameters
        for layer in (self.decpose, self.decshape, self.deccam):
            nn.init.xavier_uniform_(layer.weight, gain=0.01)  # start near the mean parameters

    def query_token(self, batch: int, state: tuple[Tensor, Tensor, Tensor], box: Tensor | None) -> Tensor:
        if self.query == "zero":
            return state[0].new_zeros(batch, 1, 1)
        if self.query == "mean_shape":
            return torch.cat(state, 1)[:, None]
        if box is None or box.shape != (batch, 3):
            raise ValueError(
                f"SMPLHead: bbox_info must be [{batch}, 3], got {None if box is None else list(box.shape)}"
            )
        return torch.cat((box.to(state[0].dtype), *state), 1)[:, None]

    def forward(self, context: Tensor, log_size: Tensor | None = None, bbox_info: Tensor | None = None) -> SmplOutput:
        """context [B, N, C] (+ log token sizes [B, N], box token [B, 3]) -> SmplOutput."""
        if context.dim() != 3:
            raise ValueError(f"SMPLHead: context must be [B, N, C], got {list(context.shape)}")
        b = context.shape[0]
        pose, betas, cam = (t.expand(b, -1) for t in (self.init_body_pose, self.init_betas, self.init_cam))
        token: Any = None
        kp: Tensor | None = None
        for _ in range(self.ief_iters):
            query = self.query_token(b, (pose, betas, cam), bbox_info)
            token = self.transformer(query.to(context.dtype), context, log_size)[:, 0]
            pose = self.decpose(token) + pose
            betas = self.decshape(token) + betas
            cam = self.deccam(token) + cam
            if self.num_keypoints:
                step = self.deckp(token)
                kp = step if kp is None else kp + step
        pose, cam = pose.float(), cam.float()
        if self.joint_rep == "6d":
            rotations = rot6d_to_matrix(pose.unflatten(1, (self.num_joints, 6)))
        else:
            rotations = axis_angle_to_matrix(pose.unflatten(1, (self.num_joints, 3)))
        points = None if kp is None else kp.float().unflatten(1, (self.num_keypoints, 2))
        return SmplOutput(
            token, rotations, betas.float(), cam, full_translation(cam, focal=CROP_FOCAL_PX, crop=CROP_PX), pose, points
        )


@model_facts(task="smpl", family="fasthmr", crop="hmr2", loss="hmr2")
class HMR2(Prepared):
    """Crops -> SMPL parameters. `prepare()` for inference, `set_merging()` to change the token count of one
    instance."""

    head_query: str | None = None  # the config decides
    aux_keypoints = 0

    config_class = HMR2Config

    def __init__(self, config: HMR2Config | None = None, **fields: Any):
        super().__init__()
        self.config = make_config(type(self), config, fields)
        c = self.config
        self.backbone = ViT(c.vit(), c.merging())
        self.smpl_head = SMPLHead(
            c.decoder(),
            self.head_query or c.query,
            c.joint_rep,
            c.ief_iters,
            c.num_body_joints,
            c.num_betas,
            self.aux_keypoints,
        )

    def set_merging(self, merging: MergeConfig | None) -> None:
        """Changes how tokens merge from the next call on (weights do not depend on it)."""
        self.backbone.merging = merging

    def keep_tokens(self, keep: int, per_block: int | None = None) -> None:
        """Mask-ToMe down to `keep` tokens from the next call on, other settings (order, prop_attn, ...) as in the
        config."""
        changed = {"keep_tokens": keep, "merge_r": None, "merge_per_block": per_block or self.config.merge_per_block}
        self.set_merging(dataclasses.replace(self.config, **changed).merging())

    def coverage(self, mask: Tensor | None) -> Tensor | None:
        """Person mask of the square crop [B, 256, 256] -> coverage per token [B, N]."""
        if mask is None or self.backbone.merging is None:
            return None
        cfg = self.backbone.cfg
        return mask_coverage(cut_sides(mask, cfg.img_size[1]), cfg.patch_size, cfg.stride, cfg.padding)

    def encode(self, img: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Crop [B, 3, 256, 256 or 192] (+ mask) -> context tokens and, when merged with prop_attn, their log sizes."""
        out = self.backbone.forward_tokens(cut_sides(img, self.backbone.cfg.img_size[1]), self.coverage(mask))
        merging = self.backbone.merging
        log_size = out.size.log() if out.size is not None and merging is not None and merging.prop_attn else None
        return out.tokens, log_size

    def forward(self, img: Tensor, mask: Tensor | None = None) -> SmplOutput:
        """Square normalised crops -> SmplOutput.

        Args:
            img: [B, 3, 256, 256] (32 columns per side are cut here) or [B, 3, 256, 192].
            mask: person mask of the same crop [B, 256, 256], bool or 0..1; only used when tokens merge.
        """
        context, log_size = self.encode(img, mask)
        return self.smpl_head(context, log_size)


def cut_sides(x: Tensor, width: int) -> Tensor:
    """Drops equal columns left and right down to `width` (256 -> 192: 32 each)."""
    extra = x.shape[-1] - width
    if extra < 0 or extra % 2:
        raise ValueError(f"hmr: crop width must be {width} or {width + 2 * SIDE_CUT}, got {x.shape[-1]}")
    return x if extra == 0 else x[..., extra // 2 : x.shape[-1] - extra // 2]


SMALL = dict(
    embed_dim=384,
    depth=12,
    num_heads=6,
    drop_path_rate=0.1,
    decoder_depth=3,
    decoder_heads=4,
    decoder_mlp_dim=512,
    decoder_dim=512,
)


TINY = dict(
    img_size=(128, 96),
    box_margin=1.15,
    embed_dim=128,
    depth=12,
    num_heads=2,
    drop_path_rate=0.0,
    stem="conv",
    decoder_depth=2,
    decoder_heads=2,
    decoder_mlp_dim=256,
    decoder_dim=128,
)
PAPERS = {
    "hmr2_vith": PaperRow(
        670.2, 122.6, "FastHMR Table 12", "the paper leaves out position tables and attention products"
    ),
    "fasthmr_hmr2": PaperRow(
        591.5, 52.8, "FastHMR Table 12", "ECLM 28 blocks + Mask-ToMe 90 tokens, without motion decoder"
    ),
}
# the published model, and the same after layer merging (28 blocks) with Mask-ToMe down to 90 tokens
LARGE = {"hmr2_vith": {}, "fasthmr_hmr2": {"depth": 28, "keep_tokens": 90}}
register_models(HMR2, LARGE, PAPERS, input_shape=(3, 256, 256))
# for training and tests: ViT-S with a three-layer decoder
register_models(HMR2, {"hmr2_vits": SMALL}, input_shape=(3, 256, 256), tags=("small",))
# trainable on a CPU: a convolutional stem, 12 blocks of width 128, 48 tokens of a 128 x 96 crop (docs/smpl.md)
register_models(HMR2, {"hmr2_vitt": TINY}, input_shape=(3, 128, 128), tags=("small",))
