"""Loss terms of FastMETRO, METRO, Mesh Graphormer and TORE, un-weighted; train/mesh_loss.py adds them up as published.

In: predictions of models/, targets in metres, flags [B] saying which items carry a label. Out: scalars. Items without a
label count neither in the sum nor in the mean; with no labelled item a term is zero. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def labelled_mean(values: Tensor, has: Tensor | None) -> Tensor:
    """Mean of values [B, ...] over the items with has [B] > 0; zero if there are none."""
    if has is None:
        return values.mean()
    if has.shape != values.shape[:1]:
        raise ValueError(f"loss: flags must be [{values.shape[0]}], got {list(has.shape)}")
    keep = (has > 0).to(values.dtype)
    per_item = values.flatten(1).mean(1)
    # An unlabelled target may hold anything, NaN included; zero times NaN would stay.
    return torch.where(keep > 0, per_item, 0.0).sum() / keep.sum().clamp_min(1.0)


def _distance(pred: Tensor, target: Tensor, kind: str) -> Tensor:
    if pred.shape != target.shape:
        raise ValueError(f"loss: prediction {list(pred.shape)} and target {list(target.shape)} must have one shape")
    if kind not in ("l1", "mse"):
        raise ValueError(f"loss: kind must be 'l1' or 'mse', got {kind!r}")
    return (pred - target).abs() if kind == "l1" else (pred - target).square()


def centre(points: Tensor, joints: tuple[int, ...]) -> Tensor:
    """points [B, N, 3] minus the mean of some of them (hips (2, 3) of the 14 body joints, wrist (0,) of a hand)."""
    return points - points[:, list(joints)].mean(1, keepdim=True)


def joints_3d_loss(
    pred: Tensor,  # [B, J, 3]
    target: Tensor,  # [B, J, 3]
    confidence: Tensor,  # [B, J]
    has: Tensor | None = None,  # [B]
    kind: str = "l1",
    origin: tuple[int, ...] = (2, 3),
) -> Tensor:
    """Distance of joints centred on the hips, times confidence, averaged over everything (hidden joints count as
    zero)."""
    values = _distance(centre(pred, origin), centre(target, origin), kind)
    return labelled_mean(values * confidence[..., None], has)


def joints_2d_loss(
    pred: Tensor,  # [B, J, 2]
    target: Tensor,  # [B, J, 2]
    visibility: Tensor,  # [B, J]
    kind: str = "l1",
) -> Tensor:
    """Distance of projected joints in [-1, 1], times visibility, averaged over everything (upstream ignores has_2d)."""
    return (_distance(pred, target, kind) * visibility[..., None]).mean()


def vertices_loss(pred: Tensor, target: Tensor, has: Tensor | None = None, kind: str = "l1") -> Tensor:
    """Mean distance of vertices [B, V, 3]; centre both before, on their own regressed pelvis."""
    return labelled_mean(_distance(pred, target, kind), has)


def edge_lengths(vertices: Tensor, edges: Tensor, eps: float = 1e-8) -> Tensor:
    """[B, E] lengths sqrt(|a - b|^2 + eps) of edges [E, 2]; eps keeps the gradient of a collapsed edge finite."""
    difference = vertices[:, edges[:, 0]] - vertices[:, edges[:, 1]]
    return (difference.square().sum(-1) + eps).sqrt()


def edge_length_loss(
    pred: Tensor, target: Tensor, edges: Tensor, has: Tensor | None = None, eps: float = 1e-8
) -> Tensor:
    """Mean |predicted - true edge length|. Give each edge once, or `face_edges(faces)` to count it per face side."""
    return labelled_mean((edge_lengths(pred, edges, eps) - edge_lengths(target, edges, eps)).abs(), has)


def edge_length_prior(pred: Tensor, edges: Tensor, has: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """Mean predicted edge length (a pull towards short edges)."""
    return labelled_mean(edge_lengths(pred, edges, eps), has)


def face_edges(faces: Tensor) -> Tensor:
    """[3 F, 2] the three sides of faces [F, 3]; inner edges appear twice."""
    return torch.cat([faces[:, [0, 1]], faces[:, [0, 2]], faces[:, [1, 2]]])


def normal_loss(pred: Tensor, target: Tensor, faces: Tensor, has: Tensor | None = None) -> Tensor:
    """Mean |cosine| between the three predicted sides of each face and the true face normal (zero for a perfect
    mesh)."""
    if pred.shape != target.shape:
        raise ValueError(f"loss: prediction {list(pred.shape)} and target {list(target.shape)} must have one shape")
    normalize = torch.nn.functional.normalize
    a, b, c = (target[:, faces[:, i]] for i in range(3))
    # sides are normalised before the product, as upstream does: tiny faces keep a well-defined normal
    normal = normalize(torch.linalg.cross(normalize(b - a, dim=-1), normalize(c - a, dim=-1), dim=-1), dim=-1)
    a, b, c = (pred[:, faces[:, i]] for i in range(3))
    cosines = [(normalize(side, dim=-1) * normal).sum(-1).abs() for side in (b - a, c - a, c - b)]
    return labelled_mean(torch.stack(cosines, dim=1), has)


def grid_occupancy(points: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h, w] 1.0 where any of points [B, V, 2] in [-1, 1] (x, y) falls into the cell; points outside count
    nowhere."""
    h, w = grid
    x = ((points[..., 0] + 1) / 2 * w).floor()
    y = ((points[..., 1] + 1) / 2 * h).floor()
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    cell = torch.where(inside, y * w + x, h * w).long()  # one extra cell collects what is outside
    hit = points.new_zeros(points.shape[0], h * w + 1).scatter_(1, cell, 1.0)
    return hit[:, :-1].unflatten(1, (h, w))


def min_max_heatmap(heatmap: Tensor) -> Tensor:
    """[B, M, N] every token's map stretched to [0, 1]."""
    low, high = heatmap.amin(-1, keepdim=True), heatmap.amax(-1, keepdim=True)
    return (heatmap - low) / (high - low + 1e-12)


def itp_loss(
    heatmap: Tensor,  # [B, M, h * w]
    points: Tensor,  # [B, V, 2] true mesh, projected with the predicted camera, in [-1, 1]
    grid: tuple[int, int],
    has: Tensor | None = None,  # [B]
) -> Tensor:
    """TORE's pruning loss: stretched heat on cells that no vertex hits, SUMMED over items, tokens and cells.

    Source: TORE code; weight 1e-3 * sigmoid(epoch - 3).
    """
    empty = 1 - grid_occupancy(points.detach(), grid).flatten(1)
    per_item = (min_max_heatmap(heatmap) * empty[:, None]).sum((1, 2))
    return per_item.sum() if has is None else torch.where(has > 0, per_item, 0.0).sum()


def smpl_parameter_loss(
    pred_rotmat: Tensor,  # [B, 24, 3, 3]
    pred_betas: Tensor,  # [B, 10]
    rotmat: Tensor,
    betas: Tensor,
    has: Tensor | None = None,
) -> Tensor:
    """MSE of rotation matrices + 0.1 * MSE of shape coefficients."""
    pose = labelled_mean(_distance(pred_rotmat, rotmat, "mse"), has)
    return pose + 0.1 * labelled_mean(_distance(pred_betas, betas, "mse"), has)
