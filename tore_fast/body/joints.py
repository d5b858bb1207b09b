"""Joint names, index maps and kinematic trees shared by bodies, data readers and metrics; weak-perspective
camera.

In: nothing. Out: tables used by body/, data/, eval/ and vis/. Conventions of METRO, FastMETRO and TORE; the
numbers are those of their released code.
"""

from __future__ import annotations

from torch import Tensor

SMPL24 = tuple(
    (
        "Pelvis L_Hip R_Hip Spine1 L_Knee R_Knee Spine2 L_Ankle R_Ankle Spine3 L_Foot R_Foot Neck "
        "L_Collar R_Collar Head L_Shoulder R_Shoulder L_Elbow R_Elbow L_Wrist R_Wrist L_Hand R_Hand"
    ).split()
)
SMPL24_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

J24 = tuple(
    (
        "R_Ankle R_Knee R_Hip L_Hip L_Knee L_Ankle R_Wrist R_Elbow R_Shoulder L_Shoulder L_Elbow "
        "L_Wrist Neck Top_of_Head Pelvis Thorax Spine Jaw Head Nose L_Eye R_Eye L_Ear R_Ear"
    ).split()
)
J24_TO_J14 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 18)
J14 = tuple(J24[i] for i in J24_TO_J14)
J14_HIPS = (2, 3)  # right, left: MPJPE is centred at their mean
J14_PARENTS = (1, 2, 12, 12, 3, 4, 7, 8, 12, 12, 9, 10, 13, -1)  # for drawing

H36M17 = tuple(
    (
        "Pelvis R_Hip R_Knee R_Ankle L_Hip L_Knee L_Ankle Torso Neck Nose Head L_Shoulder L_Elbow "
        "L_Wrist R_Shoulder R_Elbow R_Wrist"
    ).split()
)
H36M17_TO_J14 = (3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10)
H36M17_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)

# SMPL's 24 joints followed by the 14 rows of J_regressor_extra, picked into J24 (data preparation only)
SMPL38_TO_J24 = (8, 5, 29, 30, 4, 7, 21, 19, 17, 16, 18, 20, *range(31, 38), 24, 26, 25, 28, 27)

MANO16 = tuple(
    (
        "Wrist Index1 Index2 Index3 Middle1 Middle2 Middle3 Pinky1 Pinky2 Pinky3 Ring1 Ring2 Ring3 Thumb1 Thumb2 Thumb3"
    ).split()
)
MANO16_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
HAND21 = ("Wrist", *(f"{f}{i}" for f in ("Thumb", "Index", "Middle", "Ring", "Pinky") for i in (1, 2, 3, 4)))
HAND21_PARENTS = (-1, *(p for f in range(5) for p in (0, 4 * f + 1, 4 * f + 2, 4 * f + 3)))
# MANO's 16 joints followed by the five fingertips (thumb, index, middle, ring, pinky) -> HAND21
MANO21_TO_HAND21 = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
# vertices of the MANO mesh; 445 for the middle tip is what upstream regresses (444 is the right hand's own)
MANO_FINGERTIPS = (745, 317, 445, 556, 673)


def mirror_index(names: tuple[str, ...]) -> tuple[int, ...]:
    """Row order after a left-right flip: L_x and R_x change places, the others stay."""
    swap = {"L_": "R_", "R_": "L_"}
    return tuple(names.index(swap[n[:2]] + n[2:]) if n[:2] in swap else i for i, n in enumerate(names))


def project(
    points: Tensor,  # [B, N, 3] metres
    camera: Tensor,  # [B, 3] = scale, tx, ty
) -> Tensor:  # [B, N, 2], the crop is [-1, 1]
    """Weak-perspective image points s * (xy + t), as FastMETRO's code does it (its paper prints s * xy + t).

    Example:
        >>> import torch
        >>> project(torch.zeros(2, 5, 3), torch.tensor([[1.0, 0.1, 0.0]]).expand(2, 3)).shape
        torch.Size([2, 5, 2])
    """
    if points.dim() != 3 or points.shape[-1] != 3:
        raise ValueError(f"project: points must be [B, N, 3], got {list(points.shape)}")
    if camera.shape != (points.shape[0], 3):
        raise ValueError(f"project: camera must be [{points.shape[0]}, 3], got {list(camera.shape)}")
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])
