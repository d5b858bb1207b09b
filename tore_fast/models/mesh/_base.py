"""What the image-to-mesh models share: the up-sampling heads.

Next on the way: fastmetro.py, tore.py, metro.py, graphormer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.mesh import MeshUpsample
from ...layers.prepared import Prepared
from ...ops import csr_matrix
from .._config import make_config
from ..backbones import create_backbone
from ._topology import ModelMesh, resolve_mesh


@dataclasses.dataclass(frozen=True)
class MeshModelConfig:
    """What all models of the family have: trunk, image, mesh, and which image tokens are kept (ITP, layers/itp.py)."""

    backbone: str | None = "resnet50"  # None: the model is fed feature maps
    feature_dim: int = 0  # channels of the feature map; 0: as the backbone gives (2048 without one)
    stride: int = 32  # of the feature map; timm trunks are cut there
    dilated: bool = False  # timm trunks: keep all stages and dilate the last ones instead
    image_size: int | tuple[int, int] = 224  # pixels; one side or (height, width)
    pretrained_backbone: bool = False
    mesh: str = "free"
    num_joints: int = 14
    num_vertices: int = 0  # coarse; 0: as the mesh has
    selector: str = "none"  # soft, cluster, attention, none
    keep_ratio: float = 1.0  # of the image tokens
    selector_dim: int = 128
    selector_gain: float = 1.0  # soft: of the initial weights of the cells' scores, see init_selection
    knn_form: str = "released"  # cluster: density of the official code, or "printed" (TCFormer's equations 1, 2)

    @property
    def selector_options(self) -> dict[str, Any]:  # of TokenSelection.init_selection
        return {"hidden": self.selector_dim, "gain": self.selector_gain, "knn_form": self.knn_form}

    @property
    def grid(self) -> tuple[int, int]:  # rows, columns of image tokens
        return token_grid(self.image_size, self.stride)


def token_grid(image_size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of the feature map of an image; ValueError if the size is no multiple of the stride."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height % stride or width % stride or min(height, width) < stride:
        raise ValueError(f"image_size must be a multiple of the backbone's stride {stride}, got {image_size}")
    return height // stride, width // stride


def stack_maps(maps: dict[str, list[Tensor]] | None, batch: int) -> dict[str, Tensor] | None:
    """Lists of per-layer maps as one tensor each; constant maps (batch 1) are repeated."""
    if maps is None:
        return None
    return {name: torch.stack([m.expand(batch, -1, -1) for m in layers]) for name, layers in maps.items()}


class MeshModel(Prepared):
    """Base of the family: backbone, mesh."""

    needs_template = False  # METRO and Mesh Graphormer take the rest mesh as queries
    config_class: type[MeshModelConfig]
    config: MeshModelConfig  # every class narrows it to its own
    backbone: Any  # a trunk of models/backbones, or None

    def __init__(
        self,
        config: MeshModelConfig | None = None,
        mesh: str | ModelMesh | None = None,
        mesh_data: str | Path | None = None,
        **fields: Any,
    ):
        """`config` None: the class's defaults; `fields` change it; `mesh` overrides config.mesh; `mesh_data` is the
        folder of
        SMPL/MANO topology files."""
        super().__init__()
        config = make_config(type(self), config, fields)
        self.mesh = resolve_mesh(config.mesh if mesh is None else mesh, mesh_data, self.needs_template)
        self.backbone = None
        channels = config.feature_dim or 2048
        if config.backbone is not None:
            self.backbone = create_backbone(config.backbone, config.stride, config.pretrained_backbone, config.dilated)
            channels = self.backbone.num_channels
        for name, is_set, got in (
            ("num_vertices", config.num_vertices, self.mesh.counts[0]),
            ("feature_dim", config.feature_dim, channels),
        ):
            if is_set and is_set != got:
                source = "the coarse mesh" if name == "num_vertices" else config.backbone
                raise ValueError(f"{type(self).__name__}: config.{name} is {is_set}, {source} has {got}")
        # Zeros mean "as given"; ImageNet weights are fetched once, not again when a checkpoint is loaded.
        self.config = dataclasses.replace(
            config,
            num_vertices=self.mesh.counts[0],
            feature_dim=channels,
            mesh=self.mesh.name,
            pretrained_backbone=False,
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], overrides: dict[str, Any]) -> MeshModel:
        """For the registry: overrides are config fields, `mesh` (name or object) and `mesh_data`."""
        mesh, mesh_data = overrides.pop("mesh", None), overrides.pop("mesh_data", None)
        merged = {**fields, **overrides}
        if "backbone" in overrides and "feature_dim" not in overrides:
            merged.pop("feature_dim", None)
        if isinstance(mesh, str):
            merged["mesh"], mesh = mesh, None
        return cls(make_config(cls, None, merged), mesh, mesh_data)

    def upsample_mesh(self, coarse: Tensor) -> tuple[Tensor | None, Tensor]:
        """[B, V, 3] -> intermediate (None for a hand) and fine vertices."""
        raise NotImplementedError

    def features(self, images: Any) -> Any:
        """Backbone features [B, C, h, w]; without a backbone the input is taken as the features.

        Raises:
            ValueError, TypeError: shape or type is not what the model was built for; names the model, expected and got.
        """
        c = self.config
        if self.backbone is None:
            self.check_input("features", images, (c.feature_dim, *c.grid), "config feature_dim and image_size / stride")
            return images
        self.check_input(
            "images", images, (3, *(s * c.stride for s in c.grid)), "normalised crops of config image_size"
        )
        return self.backbone(images)

    def check_input(self, what: str, x: Any, shape: tuple[int, ...], meaning: str) -> None:
        """`x` must be floating point [B, *shape]."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{type(self).__name__}: {what} must be a floating-point tensor ({meaning}), got {got}")
        if tuple(x.shape[1:]) != shape:
            wanted = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"{type(self).__name__}: {what} must be [{wanted}] ({meaning}), got {list(x.shape)}")

    def unused_official_params(self) -> int:
        """Weights of the official file, without its trunk, that no forward pass reads and that our models do not
        have."""
        return 0

    def example_features(self, channels: int, rows: int, cols: int) -> object:
        """Features of one image on the meta device, for counting."""
        return torch.empty(1, channels, rows, cols, device="meta")

    def fixed_upsampling(self) -> nn.ModuleList:
        return nn.ModuleList([MeshUpsample(csr_matrix(up)) for up in self.mesh.ups])

    @torch.no_grad()
    def coarse_joint_regressor(self, regressor: Tensor) -> tuple[Tensor, Tensor]:
        """Joints straight from coarse vertices, for callers that run with fine=False.

        Up-sampling and regression are linear, so R up(x) = M x + b with M [K, V] small (17 x 431).

        Args:
            regressor: [K, V_fine] joint regressor of the fine mesh.

        Returns:
            M [K, V] and b [K, 1]; joints [B, K, 3] = M @ out.vertices_coarse + b.
        """
        weight = next(self.parameters())
        regressor = regressor.to(weight)
        count = self.mesh.counts[0]
        if regressor.dim() != 2 or regressor.shape[1] != self.mesh.counts[-1]:
            raise ValueError(
                f"coarse_joint_regressor: regressor must be [K, {self.mesh.counts[-1]}], got {list(regressor.shape)}"
            )
        basis = torch.eye(count, dtype=weight.dtype, device=weight.device)
        _, offset = self.upsample_mesh(torch.zeros_like(basis[:, :1])[None])
        _, response = self.upsample_mesh(basis[None])
        bias = regressor @ offset[0]
        return regressor @ response[0] - bias, bias
