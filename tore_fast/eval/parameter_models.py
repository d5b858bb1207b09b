"""Models of body parameters (HMR2.0, CameraHMR, FastHMR, TCFormer's regressor) in the mesh evaluation: their crops and
inputs.

In: a model, records of data/readers; out: the crop size it was made for, and a scoring that also tells CameraHMR where
the crop lies in the image. Used by cli/eval_mesh.py; evaluate.py poses the body with what these models return.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.readers import Record
from ..geometry.camera import CROP_PX, focal_from_fov
from ..geometry.warp import as_tensor, letterbox, normalise_image
from ..models._registry import facts_of
from .evaluate import MeshScoring, mesh_of

DEFAULT_CROP_PX = 224


def is_scored(model: nn.Module) -> bool:
    """The model returns a mesh, or parameters that a body is posed with."""
    facts = facts_of(model)
    return hasattr(model, "mesh") or (facts is not None and facts.task in ("mesh", "smpl"))


def takes_camera(model: nn.Module) -> bool:
    """The model also wants to know where the crop lies in the image, and the focal length."""
    facts = facts_of(model)
    return facts is not None and facts.takes_camera


def crop_size(model: Any) -> int | tuple[int, int]:
    """Side of the square crop, or (height, width) of HMR2.0's, whose square is drawn around the box widened to 3:4.

    CameraHMR sees the square around the longer side and cuts its columns itself.
    """
    config: Any = getattr(model, "config", None)
    if takes_camera(model):
        return config.img_size[0]
    size: Any = getattr(config, "image_size", None) or getattr(config, "img_size", DEFAULT_CROP_PX)
    return size


class CameraScoring(MeshScoring):
    """For CameraHMR: box, image size and focal length come with the crop; HumanFoV guesses a focal length that is
    unknown."""

    def item(self, record: Record) -> tuple[np.ndarray, dict[str, Any]]:
        image = record.image  # decoded once for the crop and the letterbox
        crop, truth = super().item(replace(record, open_image=lambda: image))
        focal = np.nan if record.camera is None else record.camera.intrinsics[0, 0]
        return crop, truth | {
            "box_center": np.asarray(record.center, np.float32),
            "box_size": np.float32(200 * record.scale),
            "image_size": np.array(image.shape[1::-1], np.float32),
            "focal": np.float32(focal),
            "image": normalise_image(letterbox(as_tensor(image), CROP_PX)).numpy(),
        }

    def rows(self, model: Any, inputs: Tensor, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        focal = truth["focal"]
        unknown = focal.isnan()
        if unknown.any():
            if model.cam_model is None:
                raise ValueError(
                    "evaluate: this CameraHMR has no field-of-view net, and the data no camera for every item"
                )
            guess = focal_from_fov(model.estimate_fov(truth["image"]).float(), truth["image_size"][:, 1])
            focal = torch.where(unknown, guess, focal)
        output = model(inputs, None, truth["box_center"], truth["box_size"], truth["image_size"], focal)
        with torch.autocast(inputs.device.type, enabled=False):
            return self.protocol.rows(mesh_of(output, self.protocol.body), truth)
