"""Joint orders of 2D detectors and how each becomes Human3.6M's 17 joints.

In: [T, J, 3] of a detector's order; out: [T, 17, 3] in H36M order. Called by clip.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...geometry.skeleton import BLAZEPOSE33, COCO17, H36M17, OPENPOSE18, OPENPOSE25, SMPL24, WHOLEBODY133, Skeleton

HALPE26 = Skeleton.of(
    (*COCO17, "Head", "Neck", "Mid_Hip", "L_BigToe", "R_BigToe", "L_SmallToe", "R_SmallToe", "L_Heel", "R_Heel")
)
SKELETONS = {
    "h36m": H36M17,
    "coco": COCO17,
    "halpe": HALPE26,
    "openpose25": OPENPOSE25,
    "openpose18": OPENPOSE18,
    "mediapipe": BLAZEPOSE33,
    "wholebody": WHOLEBODY133,
    "smpl": SMPL24,
}
ORDERS = ("auto", *SKELETONS)
COUNTS = {name: len(s) for name, s in SKELETONS.items()}
# joints -> order where the number tells it. SMPL-H and SMPL-X (52, 55, 127, 144) begin as SMPL does; hands are not
# lifted
BY_COUNT = {len(s): n for n, s in SKELETONS.items() if len(s) != 17} | dict.fromkeys((22, 52, 55, 127, 144), "smpl")

_SIDES = ("L_Hip", "R_Hip"), ("L_Shoulder", "R_Shoulder")
# H36M joint -> joints whose mean it is; joints of one name are themselves. COCO, OpenPose and MediaPipe do not detect
# the top of the head: it is put 0.4 x (head - shoulders) above the mean of eyes and ears. Neck/nose (9) is the nose, as
# detectors of Human3.6M label it.
_BODY = {
    "Pelvis": _SIDES[0],
    "Torso": (*_SIDES[1], *_SIDES[0]),
    "Neck": _SIDES[1],
    "Head": ("L_Eye", "R_Eye", "L_Ear", "R_Ear"),
}
_OWN = {
    "h36m": {},
    "coco": _BODY,
    "wholebody": _BODY,
    "mediapipe": _BODY,
    "halpe": {"Pelvis": ("Mid_Hip",), "Torso": ("Neck", "Mid_Hip"), "Neck": ("Neck",), "Head": ("Head",)},
    "openpose25": {**_BODY, "Pelvis": ("Mid_Hip",), "Torso": ("Neck", "Mid_Hip"), "Neck": ("Neck",)},
    "openpose18": {**_BODY, "Torso": ("Neck", "L_Hip", "Neck", "R_Hip"), "Neck": ("Neck",)},
    "smpl": {"Torso": ("Spine2",), "Neck": _SIDES[1], "Nose": ("Head",), "Head": ("Head",)},  # SMPL has no face
}
_TABLES = {
    order: tuple(SKELETONS[order].rows(own.get(name, (name,))) for name in H36M17) for order, own in _OWN.items()
}
_RAISED_HEAD = ("coco", "openpose25", "openpose18", "mediapipe", "wholebody", "smpl")
HEAD = H36M17.index("Head")


class KeypointError(ValueError):
    """A file of key points that cannot be used; the text names it and says why."""


def to_h36m(keypoints: np.ndarray, order: str) -> np.ndarray:
    """[T, J, 3] of a detector's order -> [T, 17, 3]; a joint's confidence is the smallest of its sources.

    Of several sources those seen (confidence > 0) are averaged where it is face points, all are needed elsewhere.
    Points that are not seen must be finite all the same.
    """
    if order not in _TABLES:
        raise KeypointError(f"order must be one of {ORDERS[1:]}, got {order!r}")
    joints = keypoints.shape[1]
    if joints != COUNTS[order] and BY_COUNT.get(joints) != order:
        raise KeypointError(f"order {order} has {COUNTS[order]} joints, the key points have {joints}")
    out = np.zeros((len(keypoints), 17, 3), np.float32)
    for joint, sources in enumerate(_TABLES[order]):
        part = keypoints[:, list(sources)].astype(np.float32)
        weight = np.ones(part.shape[:2], np.float32)
        if joint == HEAD and len(sources) > 1:
            weight = (part[..., 2] > 0).astype(np.float32)
            out[:, joint, 2] = np.where(weight.any(1), part[..., 2].max(1), 0)
        else:
            out[:, joint, 2] = part[..., 2].min(1)
        out[:, joint, :2] = (part[..., :2] * weight[..., None]).sum(1) / np.maximum(weight.sum(1), 1)[:, None]
    if order in _RAISED_HEAD:
        neck = H36M17.index("Neck")
        out[:, HEAD, :2] += 0.4 * (out[:, HEAD, :2] - out[:, neck, :2])
        out[:, HEAD, 2] = np.minimum(out[:, HEAD, 2], out[:, neck, 2])
    return out


def order_by_place(points: np.ndarray) -> str | None:
    """ "coco" or "h36m" for 17 joints ([T, 17, 3], NaN where not seen) of unknown order, by where they lie; None if
    unclear.

    COCO's first five joints are points of the face and lie close together, Human3.6M's are hips, a knee and an ankle.
    """
    size = _extent(points)
    first = _extent(points[:, :5])
    with np.errstate(invalid="ignore", divide="ignore"):
        share = first / size
    share = share[np.isfinite(share)]
    if not len(share):
        return None
    middle = float(np.median(share))
    return "coco" if middle < 0.25 else "h36m" if middle > 0.4 else None


def _extent(points: np.ndarray) -> np.ndarray:  # [T, J, 3] -> [T]
    """Longer side of the box round the points of each frame; NaN for fewer than three."""
    out = np.full(len(points), np.nan)
    for t, frame in enumerate(points):
        xy = frame[np.isfinite(frame[:, 0]), :2]
        if len(xy) >= 3:
            out[t] = np.ptp(xy, axis=0).max()
    return out


_WORDS = {"left": "L_", "right": "R_", "l": "L_", "r": "R_"}


def joint_name(text: str) -> str:
    """A joint's name in the spelling of geometry/skeleton.py without case and signs: "left_eye", "LEye", "eye_l" ->
    "l_eye"."""
    low = "".join(c if c.isalnum() else "_" for c in text.strip().lower()).strip("_")
    parts = [p for p in low.split("_") if p]
    for word, side in _WORDS.items():
        if word in parts:
            return side.lower() + "".join(p for p in parts if p != word)
        for rest in parts if len(parts) == 1 else ():
            if rest.startswith(word) and len(rest) > len(word) + 1 and rest[len(word) :] in _SIDED:
                return side.lower() + rest[len(word) :]
    return "".join(parts)


_SIDED = {n.lower()[2:].replace("_", "") for s in SKELETONS.values() for n in s if n[1:2] == "_"}


def order_of_names(names: Iterable[str]) -> tuple[str, list[int]] | None:
    """Order whose joints the names are, and the place of each of its joints among them; None if no order has them
    all."""
    given = [joint_name(n) for n in names]
    for order in ("coco", "halpe", "openpose25", "openpose18", "mediapipe", "wholebody", "smpl", "h36m"):
        wanted = [joint_name(n) for n in SKELETONS[order]]
        if len(set(given)) == len(given) and set(wanted) == set(given):
            return order, [given.index(n) for n in wanted]
    return None
