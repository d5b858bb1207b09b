"""Files of one track, written piece by piece: AMASS-like .npz, BVH and animated GLB.

In: rotations, translations and joints of consecutive frames (pipelines/video.py); out: files that appear whole or
not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..body import Body
from ..geometry import camera
from ..geometry.rotation import matrix_to_axis_angle
from ..geometry.skeleton import SMPL24
from ..io.bvh import BvhWriter
from ..io.glb import GlbAnimation
from .options import VideoOptions
from .track_store import NpzStream, TrackStore

FORMATS = ("npz", "bvh", "glb")
NPZ_KEYS = {
    "poses": "[F, 72] axis-angle of 24 joints, global orientation first (camera axes: x right, y down, z forward)",
    "global_orient": "[F, 3] axis-angle",
    "body_pose": "[F, 69] axis-angle",
    "betas": "[10], or [F, 10] with betas_mode per_frame",
    "trans": "[F, 3] metres; add to the body's vertices (camera at the origin)",
    "joints3d": "[F, 24, 3] metres in camera axes",
    "rotmats": "[F, 24, 3, 3] (option)",
    "frame_ids": "[F] frame of the video",
    "detected": "[F] bool; False where the box was missing and the result is interpolated",
    "bbox": "[F, 4] x0, y0, x1, y1 px",
    "track_id": "number",
    "cam_K": "[3, 3] camera matrix, px",
    "mocap_framerate": "frames per second",
    "gender": "neutral",
    "model": "smpl, or free for the shipped body",
    "image_size": "[2] W, H",
}


def track_writers(
    files: Sequence[Path],
    body: Body,
    options: VideoOptions,
    count: int,
    shape: Tensor,  # [1, 10] betas of the track
    fps: float,
    store: TrackStore,
    track: int,
) -> list[Callable[[dict | None], None]]:
    """One function per file: takes pieces (dicts), then None to finish; a file appears only when finished."""
    vertices, joints = (t[0].cpu().numpy() for t in body.rest(shape[:, : body.num_betas], 1))
    made: list[Callable] = []
    for path in files:
        kind = path.suffix[1:]
        if kind == "npz":
            made.append(_npz_writer(path, body.name, options, count, shape, fps, store, track))
            continue
        if kind == "bvh":
            out = BvhWriter(path, joints, body.parents, SMPL24.names, count, fps)
        else:
            faces, weights = body.faces(0), body.weights.cpu().numpy()
            out = GlbAnimation(path, vertices, faces, weights, joints, body.parents, SMPL24.names, count, fps)

        def write(piece: dict | None, out=out) -> None:
            if piece is not None:
                out.write(piece["rotations"], piece["trans"] + joints[0])
                return
            out.close()

        made.append(write)
    return made


def _npz_writer(
    path: Path,
    body_name: str,
    options: VideoOptions,
    count: int,
    shape: Tensor,
    fps: float,
    store: TrackStore,
    track: int,
) -> Callable[[dict | None], None]:
    stream = NpzStream(path, count)
    w, h = store.facts["image_size"]
    k = camera.intrinsics(torch.tensor([float(store.facts["focal"])]), torch.tensor([[float(w), float(h)]]))[0]
    if options.principal_px is not None:
        k[:2, 2] = torch.tensor(options.principal_px)
    facts = {
        "track_id": track,
        "cam_K": k.numpy(),
        "mocap_framerate": float(fps),
        "gender": "neutral",
        "model": body_name,
        "image_size": np.array([w, h], np.int32),
    }
    for key, value in facts.items():
        stream.put(key, value)
    if options.betas_mode == "median":
        stream.put("betas", shape[0].cpu().numpy())

    def write(piece: dict | None) -> None:
        if piece is None:
            stream.close()
            return
        angles = matrix_to_axis_angle(torch.from_numpy(piece["rotations"])).flatten(1).numpy()
        stream.append("poses", angles)
        stream.append("global_orient", angles[:, :3])
        stream.append("body_pose", angles[:, 3:])
        stream.append("trans", piece["trans"])
        stream.append("joints3d", piece["joints3d"])
        stream.append("frame_ids", piece["frame_ids"])
        stream.append("detected", piece["detected"])
        stream.append("bbox", piece["box"])
        if options.betas_mode == "per_frame":
            stream.append("betas", piece["betas"])
        if options.rotmats:
            stream.append("rotmats", piece["rotations"])

    return write
