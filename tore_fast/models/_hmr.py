"""What the image-to-mesh models share: the output tuple, the up-sampling heads and the `fuse` protocol.

Next on the way: fastmetro.py, tore.py, metro.py, graphormer.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers.mesh import MeshUpsample
from ..ops import csr_matrix
from ._mesh import ModelMesh, resolve_mesh
from .backbones import create_backbone


class HMROutput(NamedTuple):
    """Lengths in metres, up to the model's own origin: centre on the regressed pelvis or wrist after up-sampling."""

    camera: Tensor  # [B, 3] scale, tx, ty: crop coordinates in [-1, 1] are s * (xy + t)
    joints: Tensor  # [B, J, 3] the joint tokens
    vertices_coarse: Tensor  # [B, V, 3]
    vertices_intermediate: Tensor | None  # [B, 1723, 3]; None where the mesh has two levels or it was not asked for
    vertices: Tensor | None  # [B, 6890, 3] fine; None when not asked for
    heatmap: Tensor | None = None  # [B, M, h * w] of the token selector
    rotmat: Tensor | None = None  # [B, 24, 3, 3] SMPL parameter head
    betas: Tensor | None = None  # [B, 10]
    attention: dict[str, Tensor] | None = None  # name -> [layers, B, queries, keys], averaged over heads


def stack_maps(maps: dict[str, list[Tensor]] | None, batch: int) -> dict[str, Tensor] | None:
    """Lists of per-layer maps as one tensor each; constant maps (batch 1) are repeated."""
    if maps is None:
        return None
    return {name: torch.stack([m.expand(batch, -1, -1) for m in layers]) for name, layers in maps.items()}


class MeshModel(nn.Module):
    """Base of the family: backbone, mesh, inference shortcuts."""

    def __init__(self, config, mesh: str | ModelMesh | None = None, mesh_data: str | Path | None = None):
        """`mesh` overrides config.mesh; `mesh_data` is the folder of SMPL/MANO topology files."""
        super().__init__()
        self.config = config
        self.mesh = resolve_mesh(config.mesh if mesh is None else mesh, mesh_data)
        counts, want = self.mesh.counts, config.num_vertices
        if counts[0] != want:
            raise ValueError(f"{type(self).__name__}: config.num_vertices is {want}, the coarse mesh has {counts[0]}")
        self.backbone = None
        if config.backbone is not None:
            self.backbone = create_backbone(config.backbone, config.stride, config.pretrained_backbone)
            if self.backbone.num_channels != config.feature_dim:
                raise ValueError(
                    f"{type(self).__name__}: {config.backbone} gives {self.backbone.num_channels} channels, "
                    f"config.feature_dim is {config.feature_dim}"
                )
        self.register_load_state_dict_post_hook(lambda module, _: module.unfuse())

    def features(self, images: Tensor) -> Tensor:
        """Backbone features; without a backbone the input is taken as the features."""
        return images if self.backbone is None else self.backbone(images)

    def fixed_upsampling(self) -> nn.ModuleList:
        return nn.ModuleList([MeshUpsample(csr_matrix(up)) for up in self.mesh.ups])

    def fuse(self):
        """Prepares exact inference shortcuts (terms that are the same for every image); returns self.

        Only in eval mode. Outputs change by rounding only. `train()`, `load_state_dict` and `unfuse()` undo it; call it
        again after changing weights by hand. Call it last: after moving to the final device and dtype.
        """
        if self.training:
            raise RuntimeError(f"{type(self).__name__}.fuse: call eval() first; shortcuts would skip dropout")
        self.unfuse()
        with torch.no_grad():
            self._fuse()
        return self

    def _fuse(self) -> None:
        raise NotImplementedError

    def unfuse(self):
        """Drops the cached terms of `fuse`."""
        for module in self.modules():
            for name in module._buffers:
                if name.startswith("fused_"):
                    module._buffers[name] = None
        return self

    def train(self, mode: bool = True):
        if mode:
            self.unfuse()
        return super().train(mode)
