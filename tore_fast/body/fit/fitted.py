"""What goes into the fit and what comes out: Landmarks, FittedBody and the rule by which a fit is believed.

In: the landmark net's outputs; out: poses, meshes and cameras for pipelines/ and vis/.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry.rotation import matrix_to_axis_angle

MAX_ERROR_PX = 4.5  # mean reprojection error that is still believed, pixels of a 256 px crop
CROP_PX = 256
MIN_FLAG = 0.5  # of the landmark net's "there is a person"
MIN_VISIBLE, VISIBLE = 4, 0.5  # as many landmarks must have this visibility
HEAD, MIN_BELOW = 11, 2  # the first landmarks are of the head; a head alone says nothing about the body
ROI_MARGIN = 1.25  # side of the crop = 2 * margin * radius of the circle round the body


def middle_of(points: Tensor) -> Tensor:  # [B, 33, 2] -> [B, 2]
    """Middle of the hips; where one is not finite, of the points that are; zeros without any."""
    finite = torch.isfinite(points).all(-1, keepdim=True)
    known = torch.where(finite, points, 0)
    mean = known.sum(1) / finite.sum(1).clamp(min=1)
    return torch.where(finite[:, 23:25].all(1), known[:, 23:25].mean(1), mean)


@dataclass(frozen=True)
class Landmarks:
    """33 body landmarks of B people (nose 0, eyes 1-6, ears 7-8, mouth 9-10, then left = odd, right = even numbers).

    Args:
        points: [B, 33, 2] pixels of the image.
        world: [B, 33, 3] metres, camera axes x right, y down, z away; any origin.
        visibility: [B, 33] in 0..1.
        flag: [B] the net's probability that there is a person, or None.
        side: [B] side in pixels of the square crop they were found in, or None (told from the points then).
    """

    points: Tensor
    world: Tensor
    visibility: Tensor
    flag: Tensor | None = None
    side: Tensor | None = None

    def __post_init__(self) -> None:
        batch = self.points.shape[0] if self.points.dim() == 3 else -1
        expected = {"points": (batch, 33, 2), "world": (batch, 33, 3), "visibility": (batch, 33)}
        expected |= {"flag": (batch,), "side": (batch,)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            if value.shape != shape or batch < 0:
                wanted = f"[B{''.join(f', {n}' for n in shape[1:])}]"
                raise ValueError(f"Landmarks: {name} must be {wanted}, got {list(value.shape)}")
            if not value.is_floating_point():
                raise TypeError(f"Landmarks: {name} must be floating point, got {value.dtype}")

    def __len__(self) -> int:
        return len(self.points)

    def to(self, device: torch.device | str) -> Landmarks:
        flag, side = (None if t is None else t.to(device) for t in (self.flag, self.side))
        return Landmarks(self.points.to(device), self.world.to(device), self.visibility.to(device), flag, side)

    def crop_side(self) -> Tensor:  # [B]
        """`side`, or the side of the crop that would hold the points: twice the farthest seen point from the hips."""
        if self.side is not None:
            return self.side
        finite = torch.isfinite(self.points).all(-1)
        seen = finite & (self.visibility > 0.1)
        seen = torch.where(seen.any(1, keepdim=True), seen, finite)
        far = torch.where(seen, (self.points - middle_of(self.points)[:, None]).norm(dim=-1), 0).amax(1)
        return 2 * ROI_MARGIN * far


@dataclass(frozen=True)
class FittedBody:
    """B fitted bodies. Metres and camera axes (x right, y down, z away); bodies stand with the pelvis at the origin.

    Rows that could not be fitted at all hold the prior's mean pose, a camera of NaN, and `believed` false.
    """

    rotations: Tensor  # [B, 24, 3, 3] relative to the parent, joint 0 in camera axes
    betas: Tensor  # [B, S]
    vertices: Tensor  # [B, V, 3]
    joints: Tensor  # [B, 24, 3]
    landmarks: Tensor  # [B, 33, 3] the body's own landmarks
    camera: Tensor  # [B, 3] weak perspective of the image: pixel = scale * (x, y) + (x_px, y_px)
    translation: Tensor | None  # [B, 3] the pelvis in the pinhole camera; None without one
    world_scale: Tensor  # [B] by which the world points were scaled
    error_px: Tensor  # [B] mean reprojection error weighted by visibility, pixels of a 256 px crop
    cost: dict[str, Tensor]  # part -> [B]
    believed: Tensor  # [B] bool
    reasons: tuple[str, ...]  # why a row is not believed; "" where it is

    def __len__(self) -> int:
        return len(self.rotations)

    @property
    def axis_angle(self) -> Tensor:  # [B, 24, 3] radians
        return matrix_to_axis_angle(self.rotations)

    def full_translation(self, focal: Tensor | float, principal: Tensor) -> Tensor:  # [B, 3]
        """Place of the pelvis under a focal length (px) and principal point ([2] or [B, 2] px), from `camera` alone."""
        scale, place = self.camera[:, :1], self.camera[:, 1:]
        focal = torch.as_tensor(focal, dtype=scale.dtype, device=scale.device).reshape(-1, 1)
        return torch.cat(((place - principal) / scale, focal / scale), 1)


def reasons_not_to_believe(
    points_finite: Tensor,  # [B] landmarks that are finite
    visible: Tensor,  # [B] landmarks seen
    spread: Tensor,  # [B] bool, they do not all lie on one point
    flag: Tensor | None,
    error_px: Tensor,
    finite: Tensor,  # [B] the result is finite
    max_error_px: float,
    below: Tensor,  # [B] landmarks seen that are not of the head
) -> tuple[str, ...]:
    """One sentence a row, empty for a row that is believed."""
    out = []
    rows = [t.tolist() for t in (points_finite, visible, spread, error_px, finite, below)]
    flags = [1.0] * len(rows[0]) if flag is None else flag.tolist()
    for have, seen, size, error, ok, trunk, sure in zip(*rows, flags):
        if not have:
            out.append("no landmark is finite")
        elif not sure >= MIN_FLAG:
            out.append(f"the landmark net is {sure:.2f} sure that there is a person, {MIN_FLAG} are needed")
        elif seen < MIN_VISIBLE:
            out.append(f"{seen} of 33 landmarks are visible, {MIN_VISIBLE} are needed")
        elif trunk < MIN_BELOW:
            out.append(f"little but the head is seen: {trunk} of 22 landmarks below it, {MIN_BELOW} are needed")
        elif not size:
            out.append("all landmarks lie on one point")
        elif not ok:
            out.append("the fit did not converge")
        elif not error <= max_error_px:
            out.append(f"the body misses the landmarks by {error:.1f} px of {CROP_PX}, {max_error_px} are allowed")
        else:
            out.append("")
    return tuple(out)
