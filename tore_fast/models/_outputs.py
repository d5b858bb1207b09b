"""Outputs of models, one type for a task: MeshOutput (vertices), SmplOutput (parameters of a body).

In: what the networks of mesh/ and smpl/ compute; out: named tuples for pipelines, training and scoring. Lifting
networks return a LiftedPose (lifting/_base.py), TCFormer's regressor BodyParameters (keypoints/tcformer_heads.py).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MeshOutput(NamedTuple):
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


class SmplOutput(NamedTuple):
    """What a host predicts per crop (tensors float32; [B, ...])."""

    token: Tensor  # [B, 1024] decoder output, the per-frame feature of FastHMR
    rotations: Tensor  # [B, 24, 3, 3], [:, 0] global orientation in camera axes
    betas: Tensor  # [B, 10]
    cam: Tensor  # [B, 3] (s, tx, ty)
    cam_t: Tensor  # [B, 3] metres, camera of the crop (focal 5000 px of 256)
    pose: Tensor  # [B, 144] raw pose numbers
    keypoints: Tensor | None  # [B, 44, 2] auxiliary read-out of CameraHMR
