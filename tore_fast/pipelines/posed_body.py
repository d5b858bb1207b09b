"""A model of body parameters (TCFormer + HMR's regressor) as an image-to-mesh model: its parameters pose the free body.

In: crops; out: HMROutput, as images.py wants it. Next on the way: vis/overlay.py, vis/export.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..body import load_body
from ..geometry.skeleton import H36M17_TO_J14
from ..models.keypoints.tcformer_heads import TCFormerHMR
from ..models.mesh._base import HMROutput


class PosedBody(nn.Module):
    """`model`'s rotations, shape and camera -> mesh, joints and camera.

    Raises:
        ValueError: weights trained for another body than the free one.
    """

    def __init__(self, model: TCFormerHMR):
        super().__init__()
        if model.config.mesh != "free":
            raise ValueError(
                f"ImagePipeline: the weights speak of the licence-bound body {model.config.mesh!r}, which cannot be posed here; "
                "`tore-fast eval --body FILE` scores them"
            )
        self.model, self.config = model, model.config
        self.mesh = load_body("free")

    def forward(self, images: Tensor) -> HMROutput:  # [B, 3, S, S]
        out = self.model(images)
        vertices = self.mesh(out.rotations.float(), out.shape.float()).vertices
        joints = self.mesh.regress("h36m17", vertices)[:, list(H36M17_TO_J14)]
        coarse, middle = (self.mesh.coarse(vertices, level) for level in (2, 1))
        return HMROutput(out.camera, joints, coarse, middle, vertices, rotmat=out.rotations, betas=out.shape)
