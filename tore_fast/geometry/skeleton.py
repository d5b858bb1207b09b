"""Skeletons: names, parents and mirror images of the joint sets that models and data files use.

Left and right are the person's own. SMPL24, J24, J14 and H36M17 follow METRO, FastMETRO and TORE, MANO16 and HAND21
MANO, COCO17 and WHOLEBODY133 COCO-WholeBody, BLAZEPOSE33 MediaPipe. The maps between them are the rows of one set in
the order of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

Points = TypeVar("Points", np.ndarray, Tensor)


@dataclass(frozen=True)
class Skeleton:
    """A set of joints.

    Args:
        names: one per joint; L_x and R_x are the left and the right one of a pair.
        parents: parent row per joint, -1 for a root. Sets that are no kinematic tree have one for drawing, or () for
            none.
        mirror: row order of the mirror image.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    mirror: tuple[int, ...]

    def __post_init__(self) -> None:
        n = len(self.names)
        if len(set(self.names)) != n:
            raise ValueError("Skeleton: names must differ")
        if self.parents and (
            len(self.parents) != n or any(not -1 <= p < n or p == i for i, p in enumerate(self.parents))
        ):
            raise ValueError(f"Skeleton: parents must be {n} rows, -1 for a root, or none at all, got {self.parents}")
        if sorted(self.mirror) != list(range(n)) or any(self.mirror[m] != i for i, m in enumerate(self.mirror)):
            raise ValueError(f"Skeleton: mirror must exchange pairs of the {n} rows, got {self.mirror}")

    @classmethod
    def of(cls, names: str | Iterable[str], parents: Iterable[int] = ()) -> Skeleton:
        """Skeleton whose mirror image follows from the names."""
        rows = tuple(names.split()) if isinstance(names, str) else tuple(names)
        return cls(rows, tuple(parents), mirror_of_names(rows))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def index(self, name: str) -> int:
        """Row of a joint; ValueError if there is none of that name."""
        return self.names.index(name)

    def rows(self, names: Iterable[str]) -> tuple[int, ...]:
        """Rows of several joints."""
        return tuple(self.names.index(n) for n in names)

    @property
    def left(self) -> tuple[int, ...]:
        """Rows of the person's left side."""
        return tuple(i for i, n in enumerate(self.names) if n.startswith("L_"))

    @property
    def right(self) -> tuple[int, ...]:
        """Rows of the person's right side."""
        return tuple(i for i, n in enumerate(self.names) if n.startswith("R_"))

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(parent, child) rows."""
        return tuple((p, i) for i, p in enumerate(self.parents) if p >= 0)


def mirror_of_names(names: Sequence[str]) -> tuple[int, ...]:
    """Row order of the mirror image: L_x and R_x change places, the others stay."""
    swap = {"L_": "R_", "R_": "L_"}
    row = {n: i for i, n in enumerate(names)}
    return tuple(row[swap[n[:2]] + n[2:]] if n[:2] in swap else i for i, n in enumerate(names))


def mirror_of_pairs(count: int, pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Row order of the mirror image of `count` points whose left-right pairs are given.

    Example:
        >>> mirror_of_pairs(4, [(0, 1)])
        (1, 0, 2, 3)
    """
    order = list(range(count))
    for a, b in pairs:
        order[a], order[b] = b, a
    return tuple(order)


def mirror_points(points: Points, skeleton: Skeleton) -> Points:  # [..., J, D] -> [..., J, D]
    """Joints of the mirrored scene: the first coordinate (x) changes its sign, left and right change places."""
    if points.shape[-2] != len(skeleton):
        raise ValueError(f"mirror_points: points must be [..., {len(skeleton)}, D], got {list(points.shape)}")
    out = points[..., list(skeleton.mirror), :]  # a copy: the rows are chosen by a list
    out[..., 0] *= -1
    return out


def _tree(names: str, above: dict[str, str], root: str) -> Skeleton:
    """Skeleton of names, each joint's parent given by name; "*" stands for "L_" and "R_"."""
    rows = tuple(names.split())
    parent = {}
    for child, top in above.items():
        for side in ("L_", "R_") if "*" in child + top else ("",):
            parent[child.replace("*", side)] = top.replace("*", side)
    return Skeleton.of(rows, tuple(-1 if n == root else rows.index(parent[n]) for n in rows))


SMPL24 = Skeleton.of(
    "Pelvis L_Hip R_Hip Spine1 L_Knee R_Knee Spine2 L_Ankle R_Ankle Spine3 L_Foot R_Foot Neck "
    "L_Collar R_Collar Head L_Shoulder R_Shoulder L_Elbow R_Elbow L_Wrist R_Wrist L_Hand R_Hand",
    (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21),
)
# with five leaves, vertices of the mesh (layers/ik.py)
SMPL29 = Skeleton.of(
    (*SMPL24, "Top_of_Head", "L_Middle", "R_Middle", "L_BigToe", "R_BigToe"), (*SMPL24.parents, 15, 22, 23, 10, 11)
)

_J14 = "R_Ankle R_Knee R_Hip L_Hip L_Knee L_Ankle R_Wrist R_Elbow R_Shoulder L_Shoulder L_Elbow L_Wrist Neck "
J24 = Skeleton.of(_J14 + "Top_of_Head Pelvis Thorax Spine Jaw Head Nose L_Eye R_Eye L_Ear R_Ear")
J14 = Skeleton.of(_J14 + "Head", (1, 2, 12, 12, 3, 4, 7, 8, 12, 12, 9, 10, 13, -1))  # parents for drawing
J14_HIPS = (2, 3)  # right, left: MPJPE is centred at their mean

H36M17 = Skeleton.of(
    "Pelvis R_Hip R_Knee R_Ankle L_Hip L_Knee L_Ankle Torso Neck Nose Head L_Shoulder L_Elbow L_Wrist "
    "R_Shoulder R_Elbow R_Wrist",
    (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
)

_FACE5 = {"*Eye": "Nose", "*Ear": "*Eye"}
_LIMBS = {"*Elbow": "*Shoulder", "*Wrist": "*Elbow", "*Hip": "*Shoulder", "*Knee": "*Hip", "*Ankle": "*Knee"}
COCO17 = _tree(
    "Nose L_Eye R_Eye L_Ear R_Ear L_Shoulder R_Shoulder L_Elbow R_Elbow L_Wrist R_Wrist L_Hip R_Hip L_Knee "
    "R_Knee L_Ankle R_Ankle",
    {**_FACE5, "*Shoulder": "Nose", **_LIMBS},
    root="Nose",
)
OPENPOSE25 = _tree(
    "Nose Neck R_Shoulder R_Elbow R_Wrist L_Shoulder L_Elbow L_Wrist Mid_Hip R_Hip R_Knee R_Ankle L_Hip L_Knee L_Ankle "
    "R_Eye L_Eye R_Ear L_Ear L_BigToe L_SmallToe L_Heel R_BigToe R_SmallToe R_Heel",
    {
        **{**_FACE5, "Nose": "Neck", "*Shoulder": "Neck", "Neck": "Mid_Hip", **_LIMBS, "*Hip": "Mid_Hip"},
        **{"*BigToe": "*Ankle", "*SmallToe": "*BigToe", "*Heel": "*Ankle"},
    },
    root="Mid_Hip",
)
# OpenPose's 18 joints of COCO training
OPENPOSE18 = _tree(
    "Nose Neck R_Shoulder R_Elbow R_Wrist L_Shoulder L_Elbow L_Wrist R_Hip R_Knee R_Ankle L_Hip L_Knee L_Ankle "
    "R_Eye L_Eye R_Ear L_Ear",
    {**_FACE5, "Nose": "Neck", "*Shoulder": "Neck", **_LIMBS, "*Hip": "Neck"},
    root="Neck",
)
BLAZEPOSE33 = _tree(
    "Nose L_EyeInner L_Eye L_EyeOuter R_EyeInner R_Eye R_EyeOuter L_Ear R_Ear L_Mouth R_Mouth "
    "L_Shoulder R_Shoulder L_Elbow R_Elbow L_Wrist R_Wrist L_Pinky R_Pinky L_Index R_Index L_Thumb R_Thumb "
    "L_Hip R_Hip L_Knee R_Knee L_Ankle R_Ankle L_Heel R_Heel L_FootIndex R_FootIndex",
    {
        **{"*EyeInner": "Nose", "*Eye": "*EyeInner", "*EyeOuter": "*Eye", "*Ear": "*EyeOuter", "*Mouth": "Nose"},
        **{"*Shoulder": "Nose", **_LIMBS, "*Pinky": "*Wrist", "*Index": "*Wrist", "*Thumb": "*Wrist"},
        **{"*Heel": "*Ankle", "*FootIndex": "*Heel"},
    },
    root="Nose",
)

MANO16 = Skeleton.of(
    "Wrist Index1 Index2 Index3 Middle1 Middle2 Middle3 Pinky1 Pinky2 Pinky3 Ring1 Ring2 Ring3 Thumb1 Thumb2 Thumb3",
    (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14),
)
HAND21 = Skeleton.of(
    ("Wrist", *(f"{f}{i}" for f in ("Thumb", "Index", "Middle", "Ring", "Pinky") for i in (1, 2, 3, 4))),
    (-1, *(p for f in range(5) for p in (0, 4 * f + 1, 4 * f + 2, 4 * f + 3))),
)

# COCO-WholeBody: body, feet, 68 points of the face, both hands
WHOLEBODY_PARTS = {
    "body": (0, 17),
    "foot": (17, 23),
    "face": (23, 91),
    "left_hand": (91, 112),
    "right_hand": (112, 133),
}
# left-right pairs of the 68 face points, counted from 0
_FACE68_PAIRS = (
    *((i, 16 - i) for i in range(8)),  # jaw
    *((17 + i, 26 - i) for i in range(5)),  # brows
    *((31, 35), (32, 34)),  # nose
    *((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)),  # eyes
    *((48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)),  # mouth
)
# first point of each line of the face: jaw, brows, ridge and base of the nose, eyes, outer and inner lips
_FACE68_STARTS = (0, 17, 22, 27, 31, 36, 42, 48, 60)


def _whole_body() -> Skeleton:
    feet = ("L_BigToe", "L_SmallToe", "L_Heel", "R_BigToe", "R_SmallToe", "R_Heel")
    hands = tuple(f"{side}_Hand{n}" for side in "LR" for n in HAND21)
    face = tuple(-1 if i in _FACE68_STARTS else 22 + i for i in range(68))
    hand_parents = (
        *(9 if p < 0 else 91 + p for p in HAND21.parents),
        *(10 if p < 0 else 112 + p for p in HAND21.parents),
    )
    pairs = [
        *((i, m) for i, m in enumerate(COCO17.mirror)),
        *((17 + i, 20 + i) for i in range(3)),
        *((23 + a, 23 + b) for a, b in _FACE68_PAIRS),
        *((91 + i, 112 + i) for i in range(21)),
    ]
    return Skeleton(
        (*COCO17, *feet, *(f"Face{i}" for i in range(68)), *hands),
        (*COCO17.parents, 15, 17, 15, 16, 20, 16, *face, *hand_parents),
        mirror_of_pairs(133, pairs),
    )


WHOLEBODY133 = _whole_body()

# rows of one set in the order of another
J24_TO_J14 = J24.rows(J14)
H36M17_TO_J14 = H36M17.rows(J14)
# SMPL's 24 joints followed by the 14 rows of J_regressor_extra (data preparation only)
SMPL38_TO_J24 = (8, 5, 29, 30, 4, 7, 21, 19, 17, 16, 18, 20, *range(31, 38), 24, 26, 25, 28, 27)
# MANO's 16 joints followed by the five fingertips (thumb, index, middle, ring, pinky)
MANO21_TO_HAND21 = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
# fingertips as vertices of the MANO mesh; 445 for the middle one is what upstream regresses (444 is the right hand's
# own)
MANO_FINGERTIPS = (745, 317, 445, 556, 673)
