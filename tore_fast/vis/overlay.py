"""Drawings of meshes on images: lit, half-transparent, edges smoothed by 2x2 samples a pixel, without OpenGL.

In: pixels, vertices in camera axes (x right, y down, z away, metres) and a camera per person, from pipelines/; out:
pixels. The visibility is ops.rasterize; work is done in bands, so a large photograph needs little memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..io.atomic import replacing
from ..ops import rasterize

PALETTE = ((166, 189, 219), (253, 190, 133), (161, 217, 155), (250, 159, 181), (188, 189, 220), (255, 237, 160))
_SAMPLES = 2  # per pixel and axis
_BAND_SAMPLES = 1 << 21  # rasterised at once
_LIGHTS = (((-0.45, -0.65, -0.6), 0.62), ((0.7, -0.1, -0.5), 0.22))  # direction to the light, power
_AMBIENT = 0.34


class PerspectiveCamera(NamedTuple):
    """Full-image pinhole: pixel = focal_px * (x, y) / z + centre, of vertices + translation."""

    focal_px: float
    translation: Sequence[float] | np.ndarray  # [3] metres
    centre: Sequence[float]  # [2] pixels


def draw_people(
    image: np.ndarray,  # [H, W, 3] uint8
    vertices: Sequence[np.ndarray],  # [V, 3] each
    faces: np.ndarray,  # [F, 3]
    cameras: Sequence,  # per person [3] scale_px, x_px, y_px, or PerspectiveCamera
    *,
    colours: Sequence[tuple[int, int, int]] = PALETTE,
    alpha: float = 0.88,
) -> np.ndarray:  # [H, W, 3] uint8
    """The image with every person's mesh drawn over it; nearer people (larger scale) over farther ones.

    Args:
        vertices: metres, camera axes; a person that is not finite or behind the camera is left out.
        cameras: weak perspective, pixel = scale_px * xy + (x_px, y_px), or a PerspectiveCamera.
        alpha: opacity of the meshes, 0..1.

    Raises:
        ValueError: a shape that does not fit, or not one camera per person.

    Example:
        >>> triangle, faces = np.array([[-1.0, -1, 0], [1, -1, 0], [0, 1, 0]]), np.array([[0, 1, 2]])
        >>> draw_people(np.zeros((40, 60, 3), np.uint8), [triangle], faces, [(10.0, 30.0, 20.0)]).shape
        (40, 60, 3)
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"draw_people: image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if len(vertices) != len(cameras):
        raise ValueError(f"draw_people: one camera per person: {len(vertices)} people, {len(cameras)} cameras")
    if not 0 <= alpha <= 1:
        raise ValueError(f"draw_people: alpha must be 0..1, got {alpha}")
    index = torch.from_numpy(np.ascontiguousarray(faces, dtype=np.int32))
    out = image.copy()
    placed = []
    for number, (given, camera) in enumerate(zip(vertices, cameras)):
        points = torch.as_tensor(np.asarray(given), dtype=torch.float32)
        if points.dim() != 2 or points.shape[1] != 3:
            raise ValueError(f"draw_people: vertices of a person must be [V, 3], got {list(points.shape)}")
        pixels, distance = _project(points, camera)
        if pixels is not None:
            placed.append((distance, number, points, pixels))
    for _, number, points, pixels in sorted(placed, key=lambda p: (-p[0], p[1])):
        colour = torch.tensor(colours[number % len(colours)], dtype=torch.float32)
        _draw(out, points, pixels, index, colour, alpha)
    return out


def _project(points: Tensor, camera: Any) -> tuple[Tensor | None, float]:
    """[V, 3] pixels and depth, and the distance that orders people; (None, 0) when it cannot be drawn."""
    if isinstance(camera, PerspectiveCamera):
        x = points + torch.tensor([float(v) for v in camera.translation])
        if not bool(torch.isfinite(x).all()) or float(x[:, 2].min()) < 1e-3:
            return None, 0.0
        centre = torch.tensor([float(v) for v in camera.centre])
        return torch.cat((camera.focal_px * x[:, :2] / x[:, 2:] + centre, x[:, 2:]), 1), float(x[:, 2].mean())
    scale, x0, y0 = (float(v) for v in camera)
    pixels = torch.cat((points[:, :2] * scale + torch.tensor([x0, y0]), points[:, 2:]), 1)
    if not bool(torch.isfinite(pixels).all()):
        return None, 0.0
    return pixels, -scale


def _draw(out: np.ndarray, points: Tensor, pixels: Tensor, faces: Tensor, colour: Tensor, alpha: float) -> None:
    height, width = out.shape[:2]
    low = pixels[:, :2].amin(0).floor().clamp(min=0).long().tolist()
    high = pixels[:, :2].amax(0).ceil().long().tolist()
    x0, x1, y0, y1 = low[0], min(high[0] + 1, width), low[1], min(high[1] + 1, height)
    if x0 >= x1 or y0 >= y1:
        return
    light = _light(points, faces)  # [V]
    band = max(1, _BAND_SAMPLES // ((x1 - x0) * _SAMPLES**2))
    for top in range(y0, y1, band):
        rows = min(band, y1 - top)
        corner = torch.tensor([x0, top, 0.0])
        scaled = (pixels - corner) * torch.tensor([_SAMPLES, _SAMPLES, 1.0])
        raster = rasterize(scaled[None], faces, rows * _SAMPLES, (x1 - x0) * _SAMPLES)
        hit = raster.face_index[0] >= 0
        shade = torch.zeros(hit.shape)
        corners = faces[raster.face_index[0][hit].long()].long()
        shade[hit] = (light[corners] * raster.barycentric[0][hit]).sum(1)
        cover, shade = (_average(t) for t in (hit.float(), shade))
        target = out[top : top + rows, x0:x1]
        drawn = shade[..., None] * colour  # already times coverage
        mixed = torch.from_numpy(target.astype(np.float32)) * (1 - alpha * cover[..., None]) + alpha * drawn
        target[:] = mixed.clamp_(0, 255).round_().to(torch.uint8).numpy()


def _average(x: Tensor) -> Tensor:
    h, w = x.shape
    return x.view(h // _SAMPLES, _SAMPLES, w // _SAMPLES, _SAMPLES).mean((1, 3))


def _light(points: Tensor, faces: Tensor) -> Tensor:  # [V]
    """Lambert light of two lamps on vertex normals."""
    a, b, c = points[faces.long()].unbind(1)
    across = torch.linalg.cross(b - a, c - a)
    normal = torch.zeros_like(points)
    for k in range(3):
        normal.index_add_(0, faces[:, k].long(), across)
    normal = normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-12)
    total = torch.full((len(points),), _AMBIENT)
    for direction, power in _LIGHTS:
        d = torch.tensor(direction)
        total += power * (normal @ (d / d.norm())).clamp(min=0)
    return total


def rotated(vertices: np.ndarray, yaw_degrees: float) -> np.ndarray:  # [V, 3]
    """Vertices turned about the vertical axis through the origin (the pelvis)."""
    a = np.deg2rad(yaw_degrees)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    return np.asarray(vertices) @ turn.T


def panel(
    image: np.ndarray,  # [H, W, 3] uint8
    vertices: Sequence[np.ndarray],
    faces: np.ndarray,
    cameras: Sequence,  # per person [3] scale_px, x_px, y_px
    *,
    yaw_degrees: float = 90.0,
    **options: Any,
) -> np.ndarray:  # [H, 3 W, 3] uint8
    """Photograph | overlay | the same people turned about their own vertical axis on grey, side by side."""
    turned = [rotated(v, yaw_degrees) for v in vertices]
    grey = np.full_like(image, 236)
    side = draw_people(grey, turned, faces, cameras, **{**options, "alpha": 1.0})
    return np.concatenate((image, draw_people(image, vertices, faces, cameras, **options), side), 1)


def save_png(image: np.ndarray, path: str | Path) -> None:
    """Writes a PNG whatever the name's suffix, compressed lightly: a quarter larger, written in half the time."""
    with replacing(path) as part:
        Image.fromarray(image).save(part, "PNG", compress_level=1)
