"""What the FastHMR commands share: hosts from names, folders and official files; crops of images; joints of a body.

In: command-line strings; out: models and tensors for merge.py and video.py.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..body import Body, load_body
from ..data.boxes import boxes_of, read_boxes
from ..geometry.camera import CROP_PX
from ..geometry.crop import crop_of_box
from ..geometry.warp import as_tensor, person_crops
from ..io.image import ImageError, check_box, find_images, read_image
from ..layers.ik import LEAF_VERTICES
from ..models._checkpoint import load, registered_name
from ..models._registry import facts_of, nearest_name

# joint a leaf hangs on -> direction (T-pose, y up, facing +z) in which its tip lies
_LEAVES = (
    (15, (0.0, 1.0, 0.0)),
    (22, (1.0, 0.0, 0.0)),
    (23, (-1.0, 0.0, 0.0)),
    (10, (0.0, 0.0, 1.0)),
    (11, (0.0, 0.0, 1.0)),
)


def load_host(source: str, fov_net: str | None = None, overrides: dict | None = None) -> tuple[str, Any]:
    """(registry name, model) of a checkpoint folder, an official .ckpt / .pth file, or a model name (random weights).

    Args:
        fov_net: HumanFoV's file or folder, for a CameraHMR host that comes without it. overrides: config fields.

    Raises:
        ValueError: not a host, or the file does not fit.
    """
    model = load(source, **(overrides or {}))
    if not hasattr(model, "smpl_head"):
        raise ValueError(f"{source!r} is no HMR2.0 or CameraHMR model; expected hmr2_*, camerahmr_* or fasthmr_*")
    if fov_net is not None:
        attach_fov_net(model, fov_net, source)
    return registered_name(source) or nearest_name(model), model


def attach_fov_net(model: Any, path: str, source: str) -> None:
    """HumanFoV's file or folder into a CameraHMR model that comes without it; `source` is named in messages.

    Raises:
        ValueError: another model, or another file.
    """
    facts = facts_of(model)
    if facts is None or not facts.takes_camera:
        raise ValueError(
            f"--fov-net: a field-of-view net belongs to CameraHMR models, {source} is {type(model).__name__}"
        )
    net = load(path)
    net_facts = facts_of(net)
    if net_facts is None or net_facts.task != "camera":
        raise ValueError(f"{path}: not a HumanFoV checkpoint")
    model.cam_model, model.config = net, dataclasses.replace(model.config, fov_net=True)


class ImageCrops(NamedTuple):
    """Normalised crops and where they were cut."""

    crops: Tensor  # [N, 3, S, S]
    box_center: Tensor  # [N, 2] px
    box_size: Tensor  # [N] px
    image_size: Tensor  # [N, 2] (W, H) px


def image_crops(
    sources: Sequence[str | Path],
    boxes: str | None = None,
    limit: int | None = None,
    size: int = CROP_PX,
    margin: float = 1.0,
) -> ImageCrops:
    """Crops of the people in images and folders (whole images without boxes), at most `limit`; size, margin: the
    model's.

    An image that cannot be read is left out with a warning.
    """
    paths, errors = find_images(sources)
    if errors or not paths:
        raise ImageError(errors[0] if errors else "no image")
    table = read_boxes(boxes) if boxes else None
    crops: list[Tensor] = []
    windows: list[tuple[float, ...]] = []
    for path in paths:
        try:
            pixels = read_image(path)
        except Exception as e:  # noqa: BLE001 (decoders raise anything)
            warnings.warn(f"left out: {e}")
            continue
        h, w = pixels.shape[:2]
        found = [(0.0, 0.0, float(w), float(h))] if table is None else (boxes_of(table, path) or [])
        squares = [crop_of_box(check_box(b, w, h, str(path)), "hmr2", margin) for b in found]
        if squares:
            crops.append(person_crops(as_tensor(pixels), squares, size))
            windows += [(*s.x_y_side, w, h) for s in squares]
        if limit is not None and len(windows) >= limit:
            break
    if not crops:
        raise ImageError(f"{paths[0]} ...: no box for any of the images, or none that can be read")
    numbers = torch.tensor(windows)[:limit]
    return ImageCrops(torch.cat(crops)[:limit], numbers[:, :2], numbers[:, 2], numbers[:, 3:])


def load_named_body(source: str) -> Body:
    """ "free", or the path of a SMPL model file."""
    return load_body("free") if source == "free" else load_body("smpl", source)


def body_joints(source: str, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """(rotations, betas) -> 24 joints [B, 24, 3] in metres."""
    body = load_named_body(source).to(device)
    return lambda rotations, betas: (
        body(rotations, betas[:, : body.num_betas], level=body.hierarchy.num_levels - 1).joints
    )


def leaf_vertices(body: Body) -> list[int]:
    """Vertices for the five leaf joints (head, left/right middle finger, left/right big toe).

    SMPL has fixed ones; on another body the farthest vertex of the part in the leaf's T-pose direction is taken.
    """
    if body.name == "smpl":
        return list(LEAF_VERTICES)
    owner = body.weights.argmax(1)
    found = []
    for joint, direction in _LEAVES:
        far = body.template @ torch.tensor(direction, device=body.template.device)
        far = far.masked_fill(owner != joint, float("-inf"))
        found.append(int(far.argmax()))
    return found


class RestSkeleton:
    """29 rest joints (24 of the body, 5 leaves) for shape coefficients [B, S] -> [B, 29, 3] metres."""

    def __init__(self, body: Body):
        self.body, self.leaves = body, leaf_vertices(body)

    def __call__(self, betas: Tensor) -> Tensor:
        vertices, joints = self.body.rest(betas[:, : self.body.num_betas], betas.shape[0])
        return torch.cat((joints[:, :24], vertices[:, self.leaves]), 1)
