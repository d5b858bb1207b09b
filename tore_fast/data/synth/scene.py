"""A synthetic video of people walking about, with everything a video command takes: frames, boxes, masks.

In: a body, poses (the prior's, or real motion); out: DIR/frames/000000.png, DIR/boxes.csv, DIR/masks/TRACK/FRAME.png.
For trying `tore-fast predict` and for its long-video test; the images are plain (one colour a person, a still
backdrop).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...body import Body
from ...geometry.rotation import axis_rotation
from ...io.atomic import write_text
from ...io.video import write_mp4
from ...ops import rasterize
from .draw import Draw
from .poses import sample_pose

_COLOURS = ((0.85, 0.45, 0.30), (0.30, 0.50, 0.85), (0.45, 0.75, 0.35), (0.8, 0.7, 0.3))
_LIGHT = torch.tensor([-0.4, -0.7, -0.6])  # towards the lamp, camera axes


class SceneFrame(NamedTuple):
    """One frame."""

    image: np.ndarray  # [H, W, 3] uint8
    boxes: dict[int, tuple[float, float, float, float]]  # px, of the visible part
    masks: dict[int, np.ndarray]  # [H, W] bool, what is seen of each person


class Scene:
    """People in front of a still camera, each pacing to and fro on its own line.

    Args:
        body: free body. motions: per person rotations [F, 24, 3, 3] (y up), repeated forwards and backwards; by default
            every person blends through random poses. size: (width, height) px. focal_px: of the pinhole camera.
    """

    def __init__(
        self,
        body: Body,
        people: int = 2,
        motions: Sequence[Tensor] | None = None,
        size: tuple[int, int] = (480, 360),
        focal_px: float = 500.0,
        seed: int = 0,
        level: int = 1,
    ):
        self.body, self.size, self.focal_px, self.level = body, size, focal_px, level
        draw = Draw(1, seed, "scene")
        self.motions = (
            list(motions)
            if motions is not None
            else [sample_pose(Draw(8, seed, "person", k), 0.2) for k in range(people)]
        )
        self._blend = motions is None
        self.betas = [draw.normal(body.num_betas).clamp(-2, 2) for _ in self.motions]
        self.phase = [float(draw.uniform()[0]) for _ in self.motions]
        self.faces = torch.from_numpy(np.ascontiguousarray(body.faces(level)).astype(np.int32))
        w, h = size
        noise = np.random.default_rng(seed).normal(0, 14, (h // 4 + 1, w // 4 + 1, 3)).repeat(4, 0).repeat(4, 1)[:h, :w]
        ramp = np.linspace(150, 90, h)[:, None, None]
        self.backdrop = (noise + ramp).clip(0, 255).astype(np.float32) / 255

    def _pose(self, person: int, frame: int) -> Tensor:  # [24, 3, 3] camera axes
        motion = self.motions[person]
        if self._blend:  # 40 frames from one key pose to the next
            from ...geometry.rotation import matrix_to_rot6d, rot6d_to_matrix

            step, part = divmod(frame + 10 * person, 40)
            a, b = motion[step % len(motion)], motion[(step + 1) % len(motion)]
            share = float(0.5 - 0.5 * np.cos(np.pi * part / 40))
            return rot6d_to_matrix(matrix_to_rot6d(a) * (1 - share) + matrix_to_rot6d(b) * share)
        period = max(1, 2 * (len(motion) - 1))
        at = frame % period
        pose = motion[at if at < len(motion) else period - at].clone()
        pose[0] = axis_rotation("x", torch.tensor(180.0)) @ pose[0]
        return pose

    @torch.inference_mode()
    def frame(self, index: int) -> SceneFrame:
        """Frame `index` of an endless scene; the same index gives the same image."""
        w, h = self.size
        canvas = torch.from_numpy(self.backdrop.copy())
        depth = torch.full((h, w), float("inf"))
        owner = torch.full((h, w), -1)
        for k in range(len(self.motions)):
            posed = self.body(self._pose(k, index)[None], self.betas[k], level=self.level).vertices[0]
            lane = (k + 0.5) / len(self.motions) - 0.5
            sway = 0.25 * np.sin(2 * np.pi * (index / 150 + self.phase[k]))
            away = 4.5 + 0.8 * np.sin(2 * np.pi * (index / 220 + self.phase[k]))
            x = posed - posed.mean(0) + torch.tensor([2.4 * lane + sway, 0.1, away], dtype=torch.float32)
            pixels = torch.cat((x[:, :2] / x[:, 2:] * self.focal_px + torch.tensor([w / 2, h / 2]), x[:, 2:]), 1)
            raster = rasterize(pixels[None], self.faces, h, w)
            hit = raster.face_index[0] >= 0
            corners = self.faces[raster.face_index[0][hit].long()].long()
            z = (pixels[corners, 2] * raster.barycentric[0][hit]).sum(1)
            rows, columns = hit.nonzero(as_tuple=True)
            front = z < depth[rows, columns]
            rows, columns, corners, z = rows[front], columns[front], corners[front], z[front]
            a, b, c = x[corners].unbind(1)
            normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
            shade = 0.45 + 0.55 * (normal @ _LIGHT / _LIGHT.norm()).abs()
            canvas[rows, columns] = torch.tensor(_COLOURS[k % len(_COLOURS)]) * shade[:, None]
            depth[rows, columns], owner[rows, columns] = z, k
        boxes: dict[int, Any] = {}
        masks: dict[int, np.ndarray] = {}
        for k in range(len(self.motions)):
            seen = owner == k
            rows, columns = seen.nonzero(as_tuple=True)
            if len(rows) >= 64:
                boxes[k] = tuple(float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
                masks[k] = seen.numpy()
        return SceneFrame((canvas * 255).round().to(torch.uint8).numpy(), boxes, masks)

    def frames(self, start: int, stop: int) -> Iterator[tuple[int, SceneFrame]]:
        for index in range(start, stop):
            yield index, self.frame(index)


def write_scene(scene: Scene, folder: str | Path, frames: int, fps: float | None = None) -> Path:
    """Writes `frames` frames under `folder`: with `fps` as clip.mp4 (extra `video`), else as PNG files. Returns the
    folder.

    `boxes.csv` and `masks/` are as `tore-fast predict` takes them.
    """
    folder = Path(folder)
    images = folder / "frames" if fps is None else folder
    images.mkdir(parents=True, exist_ok=True)
    rows = ["frame,track,x0,y0,x1,y1"]

    def made() -> Iterator[tuple[int, np.ndarray]]:
        for index, frame in scene.frames(0, frames):
            rows.extend(f"{index},{k},{','.join(f'{v:.0f}' for v in box)}" for k, box in frame.boxes.items())
            for k, mask in frame.masks.items():
                path = folder / "masks" / str(k) / f"{index:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path, compress_level=1)
            yield index, frame.image

    if fps is not None:
        write_mp4(folder / "clip.mp4", (image for _, image in made()), fps)
    else:
        for index, image in made():
            Image.fromarray(image).save(images / f"{index:06d}.png", compress_level=1)
    write_text(folder / "boxes.csv", "\n".join(rows) + "\n")
    return folder
