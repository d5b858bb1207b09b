"""Weak-perspective read-outs (s, tx, ty) to translations in metres, for a crop and for the whole image.

In: cam [B, 3] of models/smpl/hmr2.py or models/smpl/camerahmr.py and the box; out: translations to add to body vertices (camera
at the origin, x right, y down, z forward). Source: HMR2.0 demo code; CameraHMR.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CROP_FOCAL_PX = 5000.0  # of a 256 px crop, HMR2.0's convention
CROP_PX = 256


def crop_translation(cam: Tensor) -> Tensor:  # [B, 3] (s, tx, ty) -> [B, 3] metres
    """Translation in the camera of the crop: (tx, ty, 2 f / (256 s)) with f = 5000 px."""
    return torch.stack((cam[:, 1], cam[:, 2], 2 * CROP_FOCAL_PX / (CROP_PX * cam[:, 0] + 1e-9)), -1)


def default_focal(image_size: Tensor) -> Tensor:  # [B, 2] px -> [B] px
    """HMR2.0's focal length of the whole image: 5000 / 256 * max(W, H)."""
    return CROP_FOCAL_PX / CROP_PX * image_size.max(-1).values


def full_translation(
    cam: Tensor,  # [B, 3] (s, tx, ty)
    box_center: Tensor,  # [B, 2] px
    box_size: Tensor,  # [B] px
    image_size: Tensor,  # [B, 2] (W, H) px
    focal: Tensor,  # [B] px
    principal: Tensor | None = None,  # [B, 2] px
) -> Tensor:  # [B, 3]
    """Translation in the camera of the whole image.

    t = (tx + 2 (cx - W/2) / (s b), ty + 2 (cy - H/2) / (s b), 2 f / (s b)), b the side of the square crop.

    Args:
        principal: principal point, default the image's centre.
    """
    middle = image_size / 2 if principal is None else principal
    b = cam[:, 0] * box_size + 1e-9
    offset = 2 * (box_center - middle) / b[:, None]
    return torch.stack((cam[:, 1] + offset[:, 0], cam[:, 2] + offset[:, 1], 2 * focal / b), -1)


def bbox_info(box_center: Tensor, box_size: Tensor, image_size: Tensor, focal: Tensor) -> Tensor:  # -> [B, 3]
    """CameraHMR's box token: ((cx - W/2), (cy - H/2), b) / f."""
    offset = box_center - image_size / 2
    return torch.cat((offset, box_size[:, None]), -1) / focal[:, None]


def focal_from_fov(vertical_fov: Tensor | float, height_px: Tensor | float) -> Tensor:
    """f = H / (2 tan(vfov / 2)); vfov in radians, f in px."""
    fov = torch.as_tensor(vertical_fov)
    return torch.as_tensor(height_px) / (2 * torch.tan(fov / 2))


def intrinsics(focal: Tensor, image_size: Tensor) -> Tensor:  # [B], [B, 2] (W, H) -> [B, 3, 3]
    """Pinhole matrix with the principal point in the middle."""
    k = torch.zeros(focal.shape[0], 3, 3, dtype=focal.dtype, device=focal.device)
    k[:, 0, 0] = k[:, 1, 1] = focal
    k[:, :2, 2] = image_size / 2
    k[:, 2, 2] = 1
    return k


def project(points: Tensor, k: Tensor) -> Tensor:  # [B, N, 3] metres, [B, 3, 3] -> [B, N, 2] px
    """Perspective projection; points behind the camera give large numbers, never NaN."""
    depth = points[..., 2:].clamp(min=1e-6)
    return (points / depth @ k.transpose(-1, -2))[..., :2]


def fov_degrees(focal_px: float, height_px: float) -> float:
    """Vertical field of view in degrees of a focal length."""
    return math.degrees(2 * math.atan(height_px / (2 * focal_px)))
