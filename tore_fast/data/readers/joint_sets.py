"""Joint lists that data files use, and their way into the 24 joints (J24) that losses and metrics use.

In: key points [K, 3 or 4] of a named set. Out: the same as [24, .] with confidence 0 where the set has no such joint.
Joints are found by name in the skeletons of geometry/skeleton.py.
"""

from __future__ import annotations

import numpy as np

from ...geometry.skeleton import COCO17, H36M17, HAND21, J14, J24, OPENPOSE18, OPENPOSE25, SMPL24

# Hips mean different places: detectors (COCO, OpenPose) put them at the hip bones' outside, J24's are LSP's
_DETECTED = {
    name: tuple(f"{n}*" if n in ("L_Hip", "R_Hip", "Neck") else n for n in table)
    for name, table in (("openpose25", OPENPOSE25), ("openpose18", OPENPOSE18), ("coco17", COCO17))
}

JOINT_SETS: dict[str, tuple[str, ...]] = {
    "j24": J24.names,
    "j14": J14.names,
    "smpl24": tuple(f"smpl {n}" for n in SMPL24),  # joints of the kinematic tree: none is a J24 joint
    "h36m17": tuple(f"h36m {n}" for n in H36M17),
    "hand21": HAND21.names,
    # 4D-Humans: OpenPose's 25, then the first 19 of J24
    "body44": (
        *(n if n in ("Nose", "R_Eye", "L_Eye", "R_Ear", "L_Ear") else f"openpose {n}" for n in OPENPOSE25),
        *J24.names[:19],
    ),
    **_DETECTED,
}


def set_of(count: int) -> str:
    """Name of the set that has `count` joints where only the number is known ("" if none)."""
    return {24: "j24", 14: "j14", 21: "hand21", 44: "body44", 17: "coco17", 25: "openpose25", 18: "openpose18"}.get(
        count, ""
    )


def to_j24(keypoints: np.ndarray, source: str) -> np.ndarray:  # [K, D] -> [24, D]
    """Key points of a named set in J24 order; the last column is the confidence and is 0 for joints the set lacks.

    Raises:
        ValueError: unknown set, or another number of key points than it has.
    """
    if source not in JOINT_SETS:
        raise ValueError(f"to_j24: no joint set {source!r}; there is {', '.join(JOINT_SETS)}")
    names = JOINT_SETS[source]
    if keypoints.ndim != 2 or len(keypoints) != len(names):
        raise ValueError(f"to_j24: {source} key points must be [{len(names)}, D], got {list(keypoints.shape)}")
    if source == "j24":
        return keypoints.astype(np.float32)
    out = np.zeros((24, keypoints.shape[1]), np.float32)
    for i, name in enumerate(J24):
        if name in names:
            out[i] = keypoints[names.index(name)]
    return out
