"""rasterize: a z-buffer for triangle meshes, without OpenGL.

In: vertices in pixels from data/synth (training images) or vis/overlay (drawings); out: per pixel the nearest face,
its depth and barycentric weights, from which the callers shade. Kernels: csrc/cpu/rasterize.cpp (threads over images),
csrc/cuda/rasterize.cu (64-bit atomicMin); both use csrc/cpu/raster_edges.h.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._dispatch import backend_reason, check_device, choose, tensor_reason
from .reference.rasterize import rasterize_reference

BACKENDS = ("cuda", "cpu")
MAX_SIZE = 1 << 15


class Raster(NamedTuple):
    face_index: Tensor  # [B, H, W] int32, -1 = no face
    depth: Tensor  # [B, H, W] float32, +inf = no face
    barycentric: Tensor  # [B, H, W, 3] float32, 0 = no face


def why_not(backend: str, vertices_px: Tensor) -> str | None:
    """Why `backend` cannot rasterise `vertices_px`, or None."""
    return backend_reason(backend) or tensor_reason(backend, vertices_px, (torch.float32,))


def rasterize(
    vertices_px: Tensor,  # [B, V, 3] x, y in pixels, depth
    faces: Tensor,  # [F, 3]
    height: int,
    width: int,
    *,
    impl: str = "auto",
) -> Raster:
    """The nearest face at every pixel centre; a smaller depth is nearer.

    x runs right and y down; pixel (row i, column j) has its centre at (j + 0.5, i + 0.5). Corners are snapped to 1/256
    pixel, coverage follows the top-left rule in integers, so every implementation covers the same pixels and
    neighbouring faces neither overlap nor leave holes. Both sides of a face are drawn. At equal depth the lower face
    index wins. Faces with a non-finite corner or one farther than 2^20 pixels out are left out; there is no clipping at
    the camera plane, so leave out what lies behind it.

    Args:
        vertices_px: [B, V, 3] float32 (float64 with the reference).
        faces: [F, 3] int32 (int64 is converted), shared by the batch, indices below V.
        height, width: image size in pixels, 1..32768.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        Raster(face_index, depth, barycentric). Weights and depth are linear in the image plane (for perspective-correct
        attributes divide the weights by the corners' depths and renormalise).

    Raises:
        ValueError: wrong shape, or vertices that require grad: the op is not differentiable. TypeError: wrong dtype.
        BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> corners = torch.tensor([[[0.0, 0.0, 1.0], [4.0, 0.0, 1.0], [0.0, 4.0, 1.0]]])
        >>> rasterize(corners, torch.tensor([[0, 1, 2]]), 4, 4).face_index[0, 0]
        tensor([ 0,  0,  0, -1], dtype=torch.int32)
    """
    if vertices_px.dim() != 3 or vertices_px.shape[-1] != 3:
        raise ValueError(f"rasterize: vertices_px must be [B, V, 3], got {list(vertices_px.shape)}")
    if faces.dim() != 2 or faces.shape[1] != 3:
        raise ValueError(f"rasterize: faces must be [F, 3], got {list(faces.shape)}")
    if not vertices_px.is_floating_point():
        raise TypeError(f"rasterize: vertices_px must be floating point, got {vertices_px.dtype}")
    if faces.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"rasterize: faces must be int32 or int64, got {faces.dtype}")
    check_device("rasterize", "vertices_px", vertices_px, faces=faces)
    if not (0 < height <= MAX_SIZE and 0 < width <= MAX_SIZE):
        raise ValueError(f"rasterize: height and width must be 1..{MAX_SIZE}, got {height} and {width}")
    if torch.is_grad_enabled() and vertices_px.requires_grad:
        raise ValueError("rasterize: not differentiable, but vertices_px requires grad; pass vertices_px.detach()")
    backend = choose("rasterize", impl, BACKENDS, why_not, vertices_px)
    if backend == "reference":
        return Raster(*rasterize_reference(vertices_px, faces, height, width))
    if faces.dtype == torch.int64:  # an index that int32 cannot hold must not become another one
        faces = faces.clamp(-1, 2**31 - 1)
    return Raster(*torch.ops.tore_fast.rasterize(vertices_px, faces.int(), height, width))


@torch.library.register_fake("tore_fast::rasterize")
def _fake(vertices_px: Tensor, faces: Tensor, height: int, width: int) -> Any:
    shape = (vertices_px.shape[0], height, width)
    return (
        vertices_px.new_empty(shape, dtype=torch.int32),
        vertices_px.new_empty(shape),
        vertices_px.new_empty((*shape, 3)),
    )
