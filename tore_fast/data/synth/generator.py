"""SynthGenerator: batches of images of the free body with everything known about them.

In: a body with part labels, a seed, a difficulty; out: images, pose, shape, camera, vertices, joints, parts, boxes. The
way of a batch: poses.py -> body/ skinning -> camera.py -> ops.rasterize -> texture.py, shading.py -> background.py ->
augment.py. Written batch-wise in torch, the same on a CPU and on a GPU.

Axes: everything 3-D is in CAMERA axes, x right, y DOWN, z away from the camera, metres, centred on the pelvis that
the body's h36m17 regressor gives. So the official weak-perspective rule s * (xy + t) needs no flip: it yields image
points in [-1, 1] of the crop, pixel = (v + 1) * size / 2. `pose` includes the turn into camera axes:
body(pose, betas).vertices minus its pelvis is `vertices`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...body import Body
from ...geometry.rotation import matrix_to_axis_angle
from ...geometry.skeleton import H36M17_TO_J14
from ...ops import rasterize
from . import background, camera, shading, texture
from .augment import Augment
from .draw import Draw, stream_seed
from .poses import PoseBank, sample_pose
from .surface import ClothedSurface, Surface


class HeldOut(NamedTuple):
    """One fixed test set: SynthGenerator(..., seed, difficulty, split="test").batch(i, batch_size), i < batches."""

    seed: int
    difficulty: float
    batches: int
    batch_size: int


# The fixed evaluation sets of the package: other seed, other background images, same prior. Never train on
# split="test". Changing anything here or in the generator makes older numbers incomparable.
HELD_OUT = {
    "hard": HeldOut(seed=20_261_121, difficulty=1.0, batches=30, batch_size=50),
    "easy": HeldOut(seed=20_261_122, difficulty=0.3, batches=20, batch_size=50),
}


class SynthGenerator:
    """Batches of synthetic images with labels, bit-reproducible per (seed, index, batch size) on one kind of device.

    Args:
        body: Body with part labels, on any device; `load_body("free")`.
        image_size: side of the square crops in pixels, 32..1024.
        seed: stream; batches of one seed and split never repeat.
        difficulty: 0 = upright standing or walking people seen from the front, nothing in front of them, calm
            backgrounds; 1 = the full prior (any pose and view, cut-off bodies, occluders, all augmentation).
        split: "train" or "test": other random stream and other background photographs.
        device: where to render; the body's when None. Body tables are copied there.
        backgrounds: "photos" (scikit-image's images and noise), "noise", or a folder of images.
        pose_bank: real-motion poses (motion.py) used in `bank_share` of the images.

    Raises:
        ValueError: an argument out of range. RuntimeError: photographs wanted and scikit-image missing.

    Example:
        >>> from tore_fast.body import load_body
        >>> generator = SynthGenerator(load_body("free"), 128, seed=0)
        >>> batch = generator.batch(0, 8)
        >>> batch["images"].shape
        torch.Size([8, 3, 128, 128])
    """

    joint_rows: tuple[int, ...] = H36M17_TO_J14
    """Rows of the regressor that `joints3d` holds."""
    framing = camera.PERSON
    device: torch.device
    _surface: Any  # what `_make_surface` gives

    def __init__(
        self,
        body: Body,
        image_size: int = 224,
        seed: int = 0,
        difficulty: float = 1.0,
        split: str = "train",
        device: str | torch.device | None = None,
        *,
        backgrounds: str | Path = "photos",
        pose_bank: PoseBank | None = None,
        bank_share: float = 0.5,
    ) -> None:
        if not 32 <= image_size <= 1024:
            raise ValueError(f"SynthGenerator: image_size must be 32..1024, got {image_size}")
        if not 0 <= difficulty <= 1:
            raise ValueError(f"SynthGenerator: difficulty must be 0..1, got {difficulty}")
        if split not in background.PHOTOGRAPHS:
            raise ValueError(f"SynthGenerator: split must be one of {', '.join(background.PHOTOGRAPHS)}, got {split!r}")
        self.device = torch.device(device) if device is not None else body.template.device
        if body.template.device != self.device:
            body = copy.deepcopy(body).to(self.device)
        self.body, self.image_size, self.seed, self.split = body, image_size, seed, split
        self.difficulty = difficulty
        self.pose_bank, self.bank_share = pose_bank, bank_share
        self._surface = self._make_surface(body).to(self.device)
        self._augment = Augment(self.device)
        self._pool = None
        if backgrounds != "noise":
            folder = None if backgrounds == "photos" else backgrounds
            self._pool = background.photograph_pool(split, folder).to(self.device)

    @torch.no_grad()
    def batch(self, index: int, batch_size: int, difficulty: float | None = None) -> dict[str, Tensor]:
        """One batch; `difficulty` overrides the generator's (for a curriculum).

        Returns a dict of tensors on the device:
            images [B, 3, S, S] uint8 RGB
            pose [B, 24, 3] axis-angle, root in camera axes; betas [B, 10]
            vertices [B, V, 3], joints3d [B, 14, 3] metres, camera axes, pelvis at the origin
            joints2d [B, 14, 2] their true perspective image points in the crop's [-1, 1]
            camera [B, 3] (s, tx, ty), the least-squares weak-perspective fit of the 431 coarse vertices
            visible2d [B, 14] float, 1 = inside the crop
            mask [B, S, S] uint8: 0 = background or occluder, 1 + part label on the body
            box [B, 4] x0, y0, x1, y1 of the whole projected body in crop pixels (may reach outside)
            translation [B, 3], crop [B, 3] (centre and half side on the plane z = 1): the exact camera
        """
        d = self.difficulty if difficulty is None else difficulty
        if not 0 <= d <= 1:
            raise ValueError(f"SynthGenerator.batch: difficulty must be 0..1, got {d}")
        key = (self.seed, self.split, index)
        draw = Draw(batch_size, *key)
        rotations = self._pose(draw, d)
        betas = draw.normal(self.body.num_betas).clamp(-2.5, 2.5) * (0.6 + 0.4 * d)
        return self._render(draw, rotations.to(self.device), betas.to(self.device), d, stream_seed("pixels", *key))

    def batches(self, count: int, batch_size: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        for index in range(start, start + count):
            yield self.batch(index, batch_size)

    def _render(self, draw: Draw, rotations: Tensor, betas: Tensor, d: float, pixel_seed: int) -> dict[str, Tensor]:
        size, body, surface = self.image_size, self.body, self._surface
        noise = torch.Generator(self.device).manual_seed(pixel_seed)
        vertices = body(rotations, betas).vertices
        joints = surface.joints(vertices)
        origin = joints[:, :1]
        vertices, joints = vertices - origin, (joints - origin)[:, list(self.joint_rows)]
        coarse = body.coarse(vertices, body.hierarchy.num_levels - 1)
        view = self._view(draw, coarse, d)
        coarse2d = view.project(coarse)
        joints2d = view.project(joints)
        box = (torch.cat((coarse2d.amin(1), coarse2d.amax(1)), 1) + 1) * (size / 2)

        worn, normals, caster, paint = self._dress(draw, vertices, rotations)
        seen = (view.project(worn) + 1) * (size / 2)
        depth = worn[..., 2:] + view.translation[:, None, 2:]
        raster = rasterize(torch.cat((seen, depth), -1), surface.faces, size, size)
        mask = torch.where(raster.face_index >= 0, surface.face_part[raster.face_index.clamp(min=0)] + 1, 0)

        lights = shading.Lights(draw, self.device)
        shadow = shading.ShadowMap(lights, surface, caster)
        pixels = (raster.face_index >= 0).flatten().nonzero()[:, 0]
        image = pixels // (size * size)
        face = raster.face_index.flatten().index_select(0, pixels)
        corners = surface.faces.index_select(0, face)
        weights = raster.barycentric.view(-1, 3).index_select(0, pixels)
        count = worn.shape[1]
        table = torch.cat((normals, worn), -1).flatten(0, 1)
        rows = table.index_select(0, (corners + image[:, None] * count).flatten()).view(-1, 3, 6)
        normal, point = _weighted(weights, rows).split(3, 1)
        rest = _weighted(weights, surface.rest.index_select(0, corners.flatten()).view(-1, 3, surface.rest.shape[1]))
        normal = normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-6)
        colour = paint(image, surface.face_part[face].long(), rest)
        colour = colour * shading.light_at(lights, image, normal, shadow.lit(image, point))

        canvas = self._backdrop(draw, d, noise)
        canvas.view(-1, 3).index_copy_(0, pixels, colour)
        covered = draw.chance(0.3 * d).nonzero()[:, 0]
        hidden = background.occluder_masks(draw, size, box, covered)
        place = covered.to(self.device)
        canvas[place] = torch.where(hidden[..., None], self._occluder(draw, covered), canvas[place])
        mask[place] = mask[place].masked_fill(hidden, 0)
        images = self._augment(draw, canvas.permute(0, 3, 1, 2).contiguous(), 0.4 + 0.6 * d)
        return {
            "images": (images.clamp(0, 1) * 255).round().to(torch.uint8),
            "pose": matrix_to_axis_angle(rotations),
            "betas": betas,
            "vertices": vertices,
            "joints3d": joints,
            "joints2d": joints2d,
            "camera": camera.weak_perspective(coarse, coarse2d),
            "visible2d": (joints2d.abs() < 1).all(-1).float(),
            "mask": mask,
            "box": box,
            "translation": view.translation,
            "crop": torch.cat((view.centre, view.half), 1),
        }

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the labels in `mask`, from 1 on."""
        return self._surface.part_names

    # ---- what a subject is: sub-classes (hand.py) have their own
    # ----------------------------------------------------------

    def _make_surface(self, body: Body) -> Surface:
        return ClothedSurface(body)

    def _pose(self, draw: Draw, d: float) -> Tensor:  # [B, J, 3, 3]
        rotations = sample_pose(draw, d)
        if self.pose_bank is not None:
            real = draw.chance(self.bank_share)
            rotations = torch.where(real[:, None, None, None], self.pose_bank.sample(draw, d), rotations)
        return rotations

    def _dress(self, draw: Draw, vertices: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor, Tensor, Callable]:
        """What is drawn: vertices and normals [B, V', 3], the mesh that throws the shadow, colour of (image, part,
        rest)."""
        normals = self._surface.normals(vertices)
        outfit = texture.Outfit(draw, self._surface, self.device)
        worn = vertices + normals * outfit.thickness(self._surface)[..., None]
        caster = self.body.coarse(worn, 1)
        return worn, normals, caster, lambda *pixels: texture.albedo(outfit, self._surface, *pixels)[0]

    def _view(self, draw: Draw, coarse: Tensor, d: float) -> camera.CropView:
        return camera.sample_view(draw, coarse, d, self.framing)

    # ---- scene
    # -----------------------------------------------------------------------------------------------------------

    def _backdrop(self, draw: Draw, d: float, noise: torch.Generator) -> Tensor:  # [B, S, S, 3]
        size = self.image_size
        canvas = torch.empty(draw.batch, size, size, 3, device=self.device)
        photo = draw.chance(0.25 + 0.35 * d if self._pool is not None else 0.0)  # plain ones first
        rows = photo.nonzero()[:, 0]
        if self._pool is not None:
            canvas[rows.to(self.device)] = background.photographs(draw, self._pool, size, rows)
        rows = (~photo).nonzero()[:, 0]
        canvas[rows.to(self.device)] = background.noise(draw, size, rows, noise)
        background.rectangles(draw, canvas, 4, 0.15 + 0.4 * d)
        return canvas

    def _occluder(self, draw: Draw, rows: Tensor) -> Tensor:  # [len(rows), S, S, 3]
        plain = draw.uniform(1, 1, 3)[rows].to(self.device)
        if self._pool is None:
            return plain.expand(-1, self.image_size, self.image_size, 3)
        imaged = draw.chance(0.5)[rows].to(self.device)[:, None, None, None]
        return torch.where(imaged, background.photographs(draw, self._pool, self.image_size, rows), plain)


def _weighted(weights: Tensor, rows: Tensor) -> Tensor:  # [N, 3], [N, 3, C] -> [N, C]
    out = weights[:, :1] * rows[:, 0]
    return out.addcmul_(weights[:, 1:2], rows[:, 1]).addcmul_(weights[:, 2:], rows[:, 2])
