"""TCFormer for tasks: key-point heat-maps (whole body, face) through MTA or a deconvolution head, and SMPL parameters.

In: images [B, 3, H, W]; out: heat-maps [B, J, H/4, W/4] for data/heatmap.py to decode, or pose/shape/camera for body/.
The backbone is models/keypoints/tcformer.py; keys of the pose model are the official ones (backbone., neck.,
keypoint_head.).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...geometry.rotation import rot6d_to_matrix
from ...layers.mta import MTA
from ...layers.token_conv import tokens_to_map
from .._config import make_config
from .._registry import PaperRow, model_facts, register_models
from .tcformer import DEPTHS, TCFormer, TCFormerConfig

NECKS = ("mta", "none")


@dataclass(frozen=True)
class TCFormerPoseConfig(TCFormerConfig):
    """Backbone fields plus neck and head; `neck="none"` is the "w/o MTA" ablation (SimpleBaseline deconvolutions)."""

    num_classes: int = 0
    num_keypoints: int = 133
    neck: str = "mta"
    neck_channels: int = 256
    neck_heads: tuple[int, ...] = (4, 4, 4, 4)
    neck_mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    neck_sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    neck_qkv_bias: bool = True
    neck_sr_layer: bool = False
    neck_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neck not in NECKS:
            raise ValueError(f"TCFormerPoseConfig: neck must be one of {NECKS}, got {self.neck!r}")
        if self.num_classes:
            raise ValueError(f"TCFormerPoseConfig: num_classes must be 0, got {self.num_classes}")

    @classmethod
    def from_parts(cls, backbone: TCFormerConfig, neck: dict, **fields: Any) -> TCFormerPoseConfig:
        """Config from a backbone config and the fields of an official `neck` entry."""
        names = {
            "out_channels": "neck_channels",
            "num_heads": "neck_heads",
            "mlp_ratios": "neck_mlp_ratios",
            "sr_ratios": "neck_sr_ratios",
            "qkv_bias": "neck_qkv_bias",
            "use_sr_layer": "neck_sr_layer",
            "norm_eps": "neck_norm_eps",
        }
        own = {f.name: getattr(backbone, f.name) for f in dataclasses.fields(TCFormerConfig)}
        own |= {names[k]: v for k, v in neck.items()}
        return cls(**{**own, "num_classes": 0, **fields})


class ConvHead(nn.Module):
    """One 1x1 convolution from the finest MTA map to heat-maps."""

    def __init__(self, dim: int, num_keypoints: int):
        super().__init__()
        self.final_layer = nn.Conv2d(dim, num_keypoints, 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.final_layer(feature_map)


class DeconvHead(nn.Module):
    """SimpleBaseline head: three 4x4 stride-2 deconvolutions (256, BatchNorm, ReLU) on the last stage, then 1x1."""

    def __init__(self, dim: int, num_keypoints: int, channels: int = 256, layers: int = 3):
        super().__init__()
        steps: list[nn.Module] = []
        for i in range(layers):
            conv = nn.ConvTranspose2d(dim if i == 0 else channels, channels, 4, stride=2, padding=1, bias=False)
            nn.init.normal_(conv.weight, std=0.001)
            steps += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.deconv_layers = nn.Sequential(*steps)
        self.final_layer = nn.Conv2d(channels, num_keypoints, 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.final_layer(self.deconv_layers(feature_map))


@model_facts(task="keypoints", family="tcformer", crop="topdown")
class TCFormerPose(nn.Module):
    """Heat-maps from TCFormer tokens: backbone -> MTA -> 1x1 convolution.

    Example:
        >>> from tore_fast.models import create_model
        >>> create_model("tcformer_base_wholebody")(torch.rand(1, 3, 256, 192)).shape
        torch.Size([1, 133, 64, 48])
    """

    config_class = TCFormerPoseConfig

    def __init__(self, config: TCFormerPoseConfig | None = None, **fields: Any):
        super().__init__()
        self.config = c = make_config(type(self), config, fields)
        self.backbone = TCFormer(c)
        self.neck: MTA | None = None
        self.keypoint_head: ConvHead | DeconvHead
        if c.neck == "mta":
            self.neck = MTA(
                c.embed_dims,
                c.neck_channels,
                c.neck_heads,
                c.neck_mlp_ratios,
                c.neck_sr_ratios,
                c.neck_qkv_bias,
                c.neck_sr_layer,
                c.neck_norm_eps,
            )
            self.keypoint_head = ConvHead(c.neck_channels, c.num_keypoints)
        else:
            self.keypoint_head = DeconvHead(c.embed_dims[-1], c.num_keypoints)
        nn.init.normal_(self.keypoint_head.final_layer.weight, std=0.001)
        if self.keypoint_head.final_layer.bias is not None:
            nn.init.zeros_(self.keypoint_head.final_layer.bias)

    def forward(self, image: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, J, H/4, W/4]
        stages = self.backbone.forward_features(image)
        feature_map = self.neck(stages)[0] if self.neck is not None else tokens_to_map(stages[-1])
        return self.keypoint_head(feature_map)


class BodyParameters(NamedTuple):
    """SMPL-style parameters and the weak-perspective camera of a 224-pixel crop."""

    rotations: Tensor  # [B, 24, 3, 3] global and body joint rotations
    shape: Tensor  # [B, 10]
    camera: Tensor  # [B, 3] scale, tx, ty in crop units ([-1, 1])
    pose6d: Tensor  # [B, 24, 6] the regressed columns, before orthonormalisation

    @property
    def betas(self) -> Tensor:
        """The shape under the name that mesh evaluation asks for (eval/evaluate.py)."""
        return self.shape


class IterativeRegressor(nn.Module):
    """HMR's regressor: the parameters are corrected `iterations` times from features and their current value.

    State (157): pose 24x6, shape 10, camera 3. Starts from the mean parameters (`set_mean`; identity, zero shape and
    camera (0.9, 0, 0) before that). Source: HMR (CVPR 2018) section 3.2, SPIN's 6D form; layer sizes as there.
    """

    init_pose: Tensor
    init_shape: Tensor
    init_cam: Tensor

    def __init__(self, dim: int, iterations: int = 3, hidden: int = 1024, num_joints: int = 24, num_shape: int = 10):
        super().__init__()
        self.iterations, self.num_joints = iterations, num_joints
        sizes = (num_joints * 6, num_shape, 3)
        self.fc1 = nn.Linear(dim + sum(sizes), hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.drop = nn.Dropout(0.5)
        self.decpose, self.decshape, self.deccam = (nn.Linear(hidden, n) for n in sizes)
        for dec in (self.decpose, self.decshape, self.deccam):
            nn.init.xavier_uniform_(dec.weight, gain=0.01)
        self.register_buffer("init_pose", torch.eye(3)[:, :2].reshape(1, 6).repeat(1, num_joints))
        self.register_buffer("init_shape", torch.zeros(1, num_shape))
        self.register_buffer("init_cam", torch.tensor([[0.9, 0.0, 0.0]]))

    def set_mean(self, pose6d: Tensor, shape: Tensor, camera: Tensor) -> None:
        """Copies mean parameters (any layout with the right number of values) into the start state."""
        for buffer, value in ((self.init_pose, pose6d), (self.init_shape, shape), (self.init_cam, camera)):
            buffer.copy_(torch.as_tensor(value, dtype=buffer.dtype).reshape(buffer.shape))

    def forward(self, features: Tensor) -> BodyParameters:  # [B, dim]
        b = features.shape[0]
        pose, shape, cam = (t.expand(b, -1) for t in (self.init_pose, self.init_shape, self.init_cam))
        for _ in range(self.iterations):
            # no activation between the two layers: the official regressor has none
            y = self.drop(self.fc1(torch.cat([features, pose, shape, cam], dim=1)))
            y = self.drop(self.fc2(y))
            pose, shape, cam = pose + self.decpose(y), shape + self.decshape(y), cam + self.deccam(y)
        pose6d = pose.unflatten(1, (self.num_joints, 6))
        return BodyParameters(rot6d_to_matrix(pose6d.float(), layout="interleaved"), shape, cam, pose6d)


@dataclass(frozen=True)
class TCFormerHMRConfig(TCFormerConfig):
    """Backbone fields plus the regressor's; `num_shape` and `num_joints` fit SMPL and the free body."""

    num_classes: int = 0
    iterations: int = 3
    regressor_hidden: int = 1024
    num_joints: int = 24
    num_shape: int = 10
    image_size: int = 224  # side of the crops it was trained on: `eval` and `predict` cut the same
    mesh: str = "free"  # body its pose and shape speak of: "free" or "smpl"


@model_facts(task="smpl", family="tcformer", crop="square", projection="centred", loss="smpl")
class TCFormerHMR(nn.Module):
    """SMPL parameters from the mean of the last stage's tokens by an iterative regressor.

    The paper's mesh model; its code was never released, so reading the 512-d token mean is our reading of the text.
    """

    config_class = TCFormerHMRConfig

    def __init__(self, config: TCFormerHMRConfig | None = None, **fields: Any):
        super().__init__()
        self.config = c = make_config(type(self), config, fields)
        self.backbone = TCFormer(c)
        self.regressor = IterativeRegressor(
            c.embed_dims[-1], c.iterations, c.regressor_hidden, c.num_joints, c.num_shape
        )

    def forward(self, image: Tensor) -> BodyParameters:  # [B, 3, 224, 224]
        return self.regressor(self.backbone.forward_features(image)[-1].x.mean(dim=1))


def _sized(size: str, num_keypoints: int) -> dict:
    return {"depths": DEPTHS[size], "num_keypoints": num_keypoints, "drop_path_rate": 0.1}


_COUNTED = "parameters and multiply-adds by the official counter"
_PAPERS = {
    "tcformer_base_wholebody": PaperRow(27.782, 8.71, _COUNTED),
    "tcformer_large_wholebody": PaperRow(65.006, 38.65, _COUNTED),
}
_WHOLEBODY = {"tcformer_light_wholebody": _sized("light", 133), "tcformer_base_wholebody": _sized("base", 133)}
_TAGS = ("keypoints", "wholebody")
register_models(TCFormerPose, _WHOLEBODY, _PAPERS, input_shape=(3, 256, 192), tags=_TAGS)
_LARGE = {"tcformer_large_wholebody": _sized("large", 133)}
register_models(TCFormerPose, _LARGE, _PAPERS, input_shape=(3, 384, 288), tags=_TAGS)
_FACES = {"tcformer_light_wflw": _sized("light", 98)}
register_models(TCFormerPose, _FACES, input_shape=(3, 256, 256), tags=("keypoints", "face"))
_BODIES = {"tcformer_light_hmr": {"depths": DEPTHS["light"]}, "tcformer_base_hmr": {"depths": DEPTHS["base"]}}
register_models(TCFormerHMR, _BODIES, tags=("mesh", "smpl"))
