"""Pose prior: key poses of arms and legs, blended with noise inside joint limits, spine, head, root orientation.

In: a Draw and the difficulty; out: rotation matrices [B, 24, 3, 3] in SMPL's joint order for body/. Angles are written
for the left side in degrees and mirrored for the right. Poses of real motion (motion.py) come in through `PoseBank`.
The body stands in camera axes: x right, y DOWN, z away from the camera, so the root of a person who faces the camera
is a half turn about x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...geometry.rotation import axis_rotation, random_rotation
from .draw import Draw

# arm: swing (about x, negative forward), azimuth (negative forward), elevation (-80 hangs, 0 sideways, 80 up),
# twist (positive turns the bent forearm inward/down, negative up), elbow flexion
_ARM_LIMITS = ((-75, 45), (-110, 40), (-86, 88), (-95, 95), (0, 145))
_ARM_KEYS = {  # name: (mean, standard deviation, weight easy, weight full)
    "hang": ((0, -5, -77, 0, 14), (8, 12, 6, 20, 10), 4, 1.5),
    "swing": ((0, -5, -76, 0, 28), (26, 10, 6, 15, 18), 4, 2),
    "hip": ((8, 22, -50, 68, 95), (10, 10, 8, 12, 12), 1, 1),
    "reach": ((0, -82, 0, 0, 18), (0, 18, 24, 30, 18), 0, 1.5),
    "side": ((0, -5, 0, 0, 12), (0, 22, 24, 25, 14), 0, 1.5),
    "up": ((0, -22, 68, 0, 25), (0, 26, 16, 35, 24), 0, 1.5),
    "front": ((-14, -20, -63, 28, 100), (12, 16, 12, 24, 24), 2, 2),
    "fold": ((0, -42, -55, 48, 104), (6, 12, 9, 12, 14), 1, 1),
    "wave": ((0, -8, 5, -78, 95), (0, 14, 22, 14, 25), 0.3, 1),
    "head": ((0, -32, 32, -58, 128), (0, 15, 14, 14, 12), 0, 0.8),
    "back": ((24, 5, -68, 76, 60), (8, 10, 7, 10, 16), 0, 0.6),
    "any": ((-5, -30, 0, 0, 60), (18, 40, 45, 45, 42), 0, 1.2),
}
# leg: flexion, abduction, outward turn, knee flexion, ankle; both legs as a pair, then the lean of the trunk
_LEG_LIMITS = ((-35, 125), (-22, 62), (-25, 55), (0, 140), (-35, 25))
_LEG_KEYS = {  # name: (left, right, lean, standard deviation, weight easy, weight full)
    "stand": ((2, 4, 6, 3, 0), (2, 4, 6, 3, 0), 2, (3, 3, 6, 4, 4), 4, 2),
    "wide": ((2, 16, 10, 4, 0), (2, 16, 10, 4, 0), 2, (6, 8, 8, 6, 5), 1, 1.5),
    "walk": ((24, 2, 3, 10, 0), (-15, 2, 3, 20, 8), 4, (9, 3, 5, 9, 7), 4, 2),
    "rest": ((2, 2, 4, 2, 0), (16, 8, 14, 28, 0), 2, (6, 5, 8, 9, 5), 2, 1),
    "run": ((62, 3, 0, 80, 0), (-14, 2, 0, 58, 15), 14, (18, 5, 8, 24, 10), 0, 1.5),
    "squat": ((82, 16, 18, 100, -18), (82, 16, 18, 100, -18), 25, (22, 9, 10, 24, 8), 0, 1.2),
    "sit": ((84, 8, 8, 84, 0), (84, 8, 8, 84, 0), 5, (10, 8, 10, 14, 8), 0, 1.2),
    "kneel": ((4, 4, 4, 102, 15), (4, 4, 4, 102, 15), 6, (14, 6, 6, 16, 8), 0, 0.5),
    "kick": ((78, 6, 6, 28, 8), (-2, 4, 6, 12, 0), -5, (26, 12, 10, 22, 10), 0, 1),
    "lunge": ((72, 6, 4, 76, 0), (-18, 6, 4, 32, 10), 12, (14, 6, 8, 18, 8), 0, 1),
    "step": ((6, 32, 10, 8, 0), (4, 10, 8, 10, 0), 3, (12, 12, 10, 12, 6), 0, 1),
    "cross": ((86, 38, 42, 112, 0), (86, 38, 42, 112, 0), 12, (10, 9, 10, 12, 8), 0, 0.4),
    "any": ((40, 12, 8, 50, 0), (40, 12, 8, 50, 0), 10, (42, 18, 18, 42, 12), 0, 1),
}


def sample_pose(draw: Draw, difficulty: float) -> Tensor:  # [B, 24, 3, 3]
    """Rotations relative to the parent; joint 0 in camera axes."""
    d = difficulty
    batch = draw.batch
    legs, lean = _legs(draw, d)
    arms = _arms(draw, d)
    out = torch.eye(3).repeat(batch, 24, 1, 1)

    bend = lean + draw.normal(std=5 + 7 * d)
    side, twist = draw.normal(std=2 + 8 * d), draw.normal(std=4 + 12 * d)
    for joint, share in ((3, 0.25), (6, 0.35), (9, 0.4)):
        out[:, joint] = (
            axis_rotation("y", share * twist) @ axis_rotation("x", share * bend) @ axis_rotation("z", share * side)
        )
    nod, shake, tilt = draw.normal(std=6 + 9 * d), draw.normal(std=10 + 18 * d), draw.normal(std=3 + 7 * d)
    nod = (nod - 0.3 * lean).clamp(-40, 45)
    shake = shake.clamp(-70, 70)
    for joint in (12, 15):
        out[:, joint] = axis_rotation("y", shake / 2) @ axis_rotation("x", nod / 2) @ axis_rotation("z", tilt / 2)

    for s, side_name in enumerate("lr"):
        m = 1 if side_name == "l" else -1  # mirrored: turns about y and z change sign
        flex, abduct, out_turn, knee, ankle = legs[:, s].unbind(-1)
        out[:, 1 + s] = axis_rotation("x", -flex) @ axis_rotation("z", m * abduct) @ axis_rotation("y", m * out_turn)
        out[:, 4 + s] = axis_rotation("x", knee)
        out[:, 7 + s] = axis_rotation("x", ankle) @ axis_rotation("z", draw.normal(std=4))
        out[:, 10 + s] = axis_rotation("x", -draw.uniform(high=12) * d)
        swing, azimuth, raised, roll, elbow = arms[:, s].unbind(-1)
        collar = 0.22 * raised.clamp(-35, 88) + draw.normal(std=2)
        out[:, 13 + s] = axis_rotation("z", m * collar)
        shoulder = axis_rotation("z", m * (raised - collar)) @ axis_rotation("x", roll)
        out[:, 16 + s] = axis_rotation("x", swing) @ axis_rotation("y", m * azimuth) @ shoulder
        out[:, 18 + s] = axis_rotation("y", -m * elbow)
        wrist = draw.normal(3, std=1) * torch.tensor([22.0, 9, 16]) * (0.4 + 0.6 * d)
        wrist = torch.maximum(torch.minimum(wrist, torch.tensor([70.0, 28, 55])), -torch.tensor([70.0, 28, 55]))
        out[:, 20 + s] = (
            axis_rotation("x", wrist[:, 0]) @ axis_rotation("y", m * wrist[:, 1]) @ axis_rotation("z", m * wrist[:, 2])
        )
    out[:, 0] = sample_view(draw, d)
    return out


def sample_view(draw: Draw, difficulty: float) -> Tensor:  # [B, 3, 3]
    """Turn of an upright body (y up, facing +z) into camera axes: any yaw, camera above or below, a few lying ones."""
    d = difficulty
    yaw = draw.uniform(low=-1, high=1) * (45 + 135 * min(1.0, 1.5 * d))
    front = draw.chance(0.35)  # photographs show people from the front more often than from elsewhere
    yaw = torch.where(front, draw.normal(std=30), yaw)
    pitch = (draw.normal(std=3 + 9 * d) + 4 * d).clamp(-35, 50)
    roll = draw.normal(std=1 + 5 * d)
    view = axis_rotation("z", roll) @ axis_rotation("x", pitch) @ axis_rotation("y", yaw)
    extreme = draw.chance(0.1 * d)
    view = torch.where(extreme[:, None, None], random_rotation(draw.normal(4)), view)
    return to_camera_axes(view)


def to_camera_axes(rotation: Tensor) -> Tensor:  # [..., 3, 3]
    """From y up, camera at +z to y down, camera at the origin looking along +z: a half turn about x."""
    return rotation.new_tensor([1.0, -1.0, -1.0]).diag() @ rotation


def _mix(draw: Draw, count: int, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, second = draw.choice(weights, count), draw.choice(weights, count)
    share = torch.where(draw.chance(0.35, count), draw.uniform(count), torch.zeros(()))
    return first, second, share


def _arms(draw: Draw, d: float) -> Tensor:  # [B, 2, 5]
    mean, std, easy, full = (
        torch.tensor([row[i] for row in _ARM_KEYS.values()], dtype=torch.float32) for i in range(4)
    )
    first, second, share = _mix(draw, 2, easy * (1 - d) + full * d)
    share = share[..., None]
    arms = mean[first] * (1 - share) + mean[second] * share
    arms = arms + draw.normal(2, 5) * std[first]
    symmetric = draw.chance(0.45)
    twin = torch.stack((arms[:, 0], arms[:, 0] + draw.normal(5) * 0.25 * std[first[:, 0]]), 1)
    arms = torch.where(symmetric[:, None, None], twin, arms)
    return _clamp(arms, _ARM_LIMITS)


def _legs(draw: Draw, d: float) -> tuple[Tensor, Tensor]:  # [B, 2, 5], lean [B]
    rows = list(_LEG_KEYS.values())
    mean = torch.tensor([row[:2] for row in rows], dtype=torch.float32)  # [K, 2, 5]
    lean, std, easy, full = (torch.tensor([row[i] for row in rows], dtype=torch.float32) for i in range(2, 6))
    first, second, share = _mix(draw, 1, easy * (1 - d) + full * d)
    first, second = first[:, 0], second[:, 0]
    a, b = mean[first], mean[second]
    a = torch.where(draw.chance(0.5)[:, None, None], a.flip(1), a)
    b = torch.where(draw.chance(0.5)[:, None, None], b.flip(1), b)
    common = draw.normal(1, 5) * 0.7  # what both legs share, so that squats stay squats
    legs = a * (1 - share[..., None]) + b * share[..., None]
    legs = legs + (common + 0.7 * draw.normal(2, 5)) * std[first][:, None]
    trunk = lean[first] * (1 - share[:, 0]) + lean[second] * share[:, 0]
    return _clamp(legs, _LEG_LIMITS), trunk


def _clamp(x: Tensor, limits: tuple[tuple[float, float], ...]) -> Tensor:
    low, high = torch.tensor(limits, dtype=x.dtype).unbind(-1)
    return torch.maximum(torch.minimum(x, high), low)


class PoseBank:
    """Poses of real motion: draws rows of `poses` instead of the prior.

    Args:
        poses: [N, 24, 3, 3] rotations relative to the parent in SMPL's order; joint 0 upright (y up).
    """

    def __init__(self, poses: Tensor):
        if poses.dim() != 4 or poses.shape[1:] != (24, 3, 3):
            raise ValueError(f"PoseBank: poses must be [N, 24, 3, 3], got {list(poses.shape)}")
        if not len(poses):
            raise ValueError("PoseBank: no poses")
        if not torch.isfinite(poses).all():
            raise ValueError("PoseBank: poses have non-finite entries")
        self.poses = poses.float()

    def __len__(self) -> int:
        return len(self.poses)

    def sample(self, draw: Draw, difficulty: float) -> Tensor:  # [B, 24, 3, 3]
        """Random frames, their heading replaced by a random one, seen by the prior's cameras."""
        pose = self.poses[draw.integer(len(self))].clone()
        forward = pose[:, 0, :, 2]  # where the pelvis' +z points
        heading = torch.rad2deg(torch.atan2(forward[:, 0], forward[:, 2]))
        pose[:, 0] = sample_view(draw, difficulty) @ axis_rotation("y", -heading) @ pose[:, 0]
        return pose
