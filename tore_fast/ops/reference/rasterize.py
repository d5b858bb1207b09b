"""Plain torch z-buffer: every (face, pixel of its bounding box) pair is tested, the nearest kept by scatter_reduce."""

from __future__ import annotations

import torch
from torch import Tensor

_SUB = 256  # corners are snapped to 1/256 pixel
_MAX_COORDINATE = 2.0**20
_CHUNK = 1 << 21  # pairs tested at once


def rasterize_reference(
    vertices_px: Tensor,  # [B, V, 3]
    faces: Tensor,  # [F, 3]
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # [B, H, W] int32, [B, H, W], [B, H, W, 3]
    if faces.numel() and (int(faces.min()) < 0 or int(faces.max()) >= vertices_px.shape[1]):
        raise ValueError(f"rasterize: faces must be 0..{vertices_px.shape[1] - 1}")
    items = [_one_image(v, faces.long(), height, width) for v in vertices_px]
    if not items:
        shape = (0, height, width)
        return (
            faces.new_empty(shape, dtype=torch.int32),
            vertices_px.new_empty(shape),
            vertices_px.new_empty((*shape, 3)),
        )
    depth, face, weights = (torch.stack(parts) for parts in zip(*items, strict=True))
    return depth, face, weights


def _one_image(vertices: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    corners = vertices[faces]  # [F, 3, 3]
    usable = (corners[..., :2].abs() < _MAX_COORDINATE).all(-1) & (corners[..., 2].abs() < 3e38)
    index = usable.all(-1).nonzero()[:, 0]  # faces left in
    corners = corners[index]
    xy = (corners[..., :2] * _SUB).round().long()  # [F, 3, 2]
    z = corners[..., 2]
    low = (xy.amin(1) + _SUB // 2 - 1).div(_SUB, rounding_mode="floor").clamp(min=0)
    high = (xy.amax(1) - _SUB // 2).div(_SUB, rounding_mode="floor")
    high = torch.minimum(high, high.new_tensor([width - 1, height - 1]))
    box = (high - low + 1).clamp(min=0)  # columns, rows
    pairs = box.prod(-1)

    best_depth = vertices.new_full((height * width,), torch.inf)
    best_face = torch.full((height * width,), -1, dtype=torch.long, device=vertices.device)
    weights = vertices.new_zeros(height * width, 3)
    for part in _chunks(pairs):  # chunks come in face order: an earlier one keeps a tie
        face = torch.repeat_interleave(part, pairs[part])
        first = torch.repeat_interleave(pairs[part].cumsum(0) - pairs[part], pairs[part])
        k = torch.arange(face.shape[0], device=face.device) - first
        column, row = low[face, 0] + k % box[face, 0], low[face, 1] + k // box[face, 0]
        inside, w = _test(xy[face], column, row, vertices.dtype)
        face, pixel, w = face[inside], (row * width + column)[inside], w[inside]
        depth = w[:, 0] * z[face, 0] + w[:, 1] * z[face, 1] + w[:, 2] * z[face, 2]
        old = best_depth.clone()
        best_depth.scatter_reduce_(0, pixel, depth, "amin")
        hit = (depth == best_depth[pixel]) & (depth < old[pixel])
        winner = torch.full_like(best_face, faces.shape[0]).scatter_reduce_(0, pixel[hit], face[hit], "amin")
        won = hit & (face == winner[pixel])
        best_face[pixel[won]] = index[face[won]]
        weights[pixel[won]] = w[won]
    return (best_face.int().view(height, width), best_depth.view(height, width), weights.view(height, width, 3))


def _chunks(pairs: Tensor) -> list[Tensor]:
    faces = pairs.nonzero()[:, 0]
    group = (pairs[faces].cumsum(0) - 1).div(_CHUNK, rounding_mode="floor")
    return [faces[group == g] for g in group.unique()]


def _test(xy: Tensor, column: Tensor, row: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whether pixel centres lie in triangles xy [N, 3, 2] (top-left rule), and their weights [N, 3]."""
    px, py = column * _SUB + _SUB // 2, row * _SUB + _SUB // 2
    a, b, c = xy.unbind(1)
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    turn = area.sign()
    inside, edges = area != 0, []
    for i, j in ((1, 2), (2, 0), (0, 1)):  # the edge opposite to corners 0, 1, 2
        d = (xy[:, j] - xy[:, i]) * turn[:, None]
        e = d[:, 0] * (py - xy[:, i, 1]) - d[:, 1] * (px - xy[:, i, 0])
        top_left = (d[:, 1] < 0) | ((d[:, 1] == 0) & (d[:, 0] > 0))
        inside = inside & ((e > 0) | ((e == 0) & top_left))
        edges.append(e)
    return inside, torch.stack(edges, -1).to(dtype) * area.abs()[:, None].to(dtype).reciprocal()
