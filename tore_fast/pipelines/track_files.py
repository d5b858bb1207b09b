"""Files of one track, written piece by piece: AMASS-like .npz, BVH and animated GLB.

In: rotations, translations and joints of consecutive frames (pipelines/video.py); out: files that appear whole or
not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..body import Body
from ..geometry.rotation import matrix_to_axis_angle
from ..geometry.skeleton import SMPL24
from ..io.bvh import BvhWriter
from ..io.glb import GlbAnimation
from .options import VideoOptions
from .track_store import NpzStream, TrackStore

FORMATS = ("npz", "bvh", "glb")
ROW_KEYS = ("rotations", "trans", "joints_3d", "frame", "time", "detected", "box", "focal_px", "principal_px")


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
            out: Any = BvhWriter(path, joints, body.parents, SMPL24.names, count, fps)
        else:
            faces, weights = body.faces(0), body.weights.cpu().numpy()
            out = GlbAnimation(path, vertices, faces, weights, joints, body.parents, SMPL24.names, count, fps)

        def write(piece: dict | None, out: Any = out) -> None:
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
    facts = {
        "source": str(store.facts.get("source", "")),
        "image_size": np.array(store.facts["image_size"], np.int32),
        "track": track,
        "mocap_framerate": float(fps),
        "gender": "neutral",
        "body": body_name,
        "joint_names": np.array(SMPL24.names),
    }
    for key, value in facts.items():
        stream.put(key, value)
    if options.betas_mode == "median":
        stream.put("betas", shape[0].cpu().numpy())

    def write(piece: dict | None) -> None:
        if piece is None:
            stream.close()
            return
        stream.append("poses", matrix_to_axis_angle(torch.from_numpy(piece["rotations"])).flatten(1).numpy())
        for key in (*ROW_KEYS, *(("betas",) if options.betas_mode == "per_frame" else ())):
            stream.append(key, piece[key])

    return write
