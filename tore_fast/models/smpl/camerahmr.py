"""CameraHMR: HMR2.0's network with a box token and true intrinsics, and the HumanFoV net.

In: square crops, their boxes and the camera matrix (or a field of view from `HumanFoV`); out: `SmplOutput` with 44
auxiliary key points. Feed RGB to both networks. Next on the way: geometry/camera.py:full_translation, body/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...geometry import camera
from .._outputs import SmplOutput
from .._registry import PaperRow, model_facts, register_models
from .hmr2 import HMR2, SMALL, HMR2Config
from .humanfov import HumanFoV


@dataclass(frozen=True)
class CameraHMRConfig(HMR2Config):
    """HMR2Config and whether the field-of-view net belongs to the model."""

    query: str = "bbox"
    fov_net: bool = True


@model_facts(task="smpl", family="fasthmr", crop="hmr2", loss="hmr2", takes_camera=True)
class CameraHMR(HMR2):
    head_query = "bbox"
    aux_keypoints = 44

    config_class = CameraHMRConfig

    def __init__(self, config: CameraHMRConfig | None = None, **fields: Any):
        super().__init__(config, **fields)
        self.cam_model = HumanFoV() if self.config.fov_net else None

    def estimate_fov(self, image: Tensor) -> Tensor:
        """Letterboxed whole images [B, 3, 256, 256] -> vertical field of view [B] in radians."""
        if self.cam_model is None:
            raise ValueError("CameraHMR: built with fov_net=False; give intrinsics or build with fov_net=True")
        return self.cam_model(image)[:, 1]

    def forward(
        self,
        img: Tensor,  # [B, 3, 256, 256]
        mask: Tensor | None = None,  # [B, 256, 256]
        box_center: Tensor | None = None,  # [B, 2] px
        box_size: Tensor | None = None,  # [B] px
        image_size: Tensor | None = None,  # [B, 2] (W, H) px
        focal: Tensor | None = None,  # [B] px
    ) -> SmplOutput:
        """Crops and where they come from -> SmplOutput.

        Without box, size and focal the crop counts as the whole image: its field of view is estimated here.
        """
        given = (box_center, box_size, image_size)
        if all(t is None for t in given):
            side = img.shape[-2]
            image_size = img.new_full((img.shape[0], 2), side)
            box_center, box_size = image_size / 2, image_size[:, 0]
        elif any(t is None for t in given):
            raise ValueError("CameraHMR: give box_center, box_size and image_size together")
        assert image_size is not None and box_center is not None and box_size is not None
        if focal is None:
            focal = camera.focal_from_fov(self.estimate_fov(img), image_size[:, 1])
        info = camera.bbox_info(box_center, box_size, image_size, focal)
        context, log_size = self.encode(img, mask)
        return self.smpl_head(context, log_size, info)


PAPERS = {
    "camerahmr_vith": PaperRow(737.1, 144.0, "FastHMR Table 12", "with HumanFoV; ours includes its two unused layers"),
    "fasthmr_camerahmr": PaperRow(
        619.0, 70.7, "FastHMR Table 12", "ECLM 26 blocks + Mask-ToMe 90 tokens + HumanFoV, without motion decoder"
    ),
}
# the published model, and the same after layer merging (26 blocks) with Mask-ToMe down to 90 tokens
LARGE = {"camerahmr_vith": {}, "fasthmr_camerahmr": {"depth": 26, "keep_tokens": 90}}
register_models(CameraHMR, LARGE, PAPERS, input_shape=(3, 256, 256))
# for training and tests, without the field-of-view net
register_models(CameraHMR, {"camerahmr_vits": {**SMALL, "fov_net": False}}, input_shape=(3, 256, 256), tags=("small",))
