"""Cameras: weak perspective (s, tx, ty) of a square crop, pinholes, and the way from one to the other.

Axes: x right, y down, z forward, metres, the camera at the origin. A crop reaches from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CROP_FOCAL_PX = 5000.0  # of a 256 px crop, HMR2.0's convention
CROP_PX = 256
CAMERA_TO_Y_UP = np.diag([1.0, -1.0, -1.0])  # camera axes to y up, facing the camera; its own inverse


def project_weak(
    points: Tensor,  # [B, N, 3] metres
    camera: Tensor,  # [B, 3] = s, tx, ty
) -> Tensor:  # [B, N, 2], the crop is [-1, 1]
    """Weak-perspective image points s * (xy + t), as FastMETRO's code does it (its paper prints s * xy + t).

    Example:
        >>> project_weak(torch.zeros(2, 5, 3), torch.tensor([[1.0, 0.1, 0.0]]).expand(2, 3)).shape
        torch.Size([2, 5, 2])
    """
    if points.dim() != 3 or points.shape[-1] != 3:
        raise ValueError(f"project_weak: points must be [B, N, 3], got {list(points.shape)}")
    if camera.shape != (points.shape[0], 3):
        raise ValueError(f"project_weak: camera must be [{points.shape[0]}, 3], got {list(camera.shape)}")
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])


def image_camera(camera: np.ndarray, center: Sequence[float], side: float) -> np.ndarray:  # [3] -> [3]
    """Weak-perspective camera (s, tx, ty) of a square crop as (scale_px, x_px, y_px) of the whole image.

    pixel = scale_px * xy + (x_px, y_px).

    Args:
        center: of the crop, px. side: of the crop, px.
    """
    scale = camera[0] * 0.5 * side
    return np.array([scale, center[0] + scale * camera[1], center[1] + scale * camera[2]])


def default_focal(image_size: Tensor) -> Tensor:  # [B, 2] px -> [B] px
    """HMR2.0's focal length of the whole image: 5000 / 256 * max(W, H)."""
    return CROP_FOCAL_PX / CROP_PX * image_size.max(-1).values


def full_translation(
    cam: Tensor,  # [B, 3] (s, tx, ty)
    *,
    focal: Tensor | float,  # [B] px
    crop: Tensor | float,  # [B] px
    offset: Tensor | None = None,  # [B, 2] px
) -> Tensor:  # [B, 3] metres
    """Translation that puts a body before a pinhole camera where the weak-perspective camera of its crop sees it.

    t = (tx + 2 ox / (s b), ty + 2 oy / (s b), 2 f / (s b)).

    Args:
        focal: focal length f of the pinhole.
        crop: side b of the square crop in the pixels of `focal`.
        offset: centre of the crop from the principal point (ox, oy). None: the crop lies in the middle, which gives the
            camera of the crop itself.

    Source: HMR2.0's demo code; CameraHMR.
    """
    b = cam[:, 0] * crop + 1e-9
    xy = cam[:, 1:] if offset is None else cam[:, 1:] + 2 * offset / b[:, None]
    return torch.cat((xy, (2 * focal / b)[:, None]), -1)


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
