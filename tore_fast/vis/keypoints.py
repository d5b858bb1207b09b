"""2D key points drawn on the photograph (TCFormer, figures 6 and A2 to A4): bones by part, points by score.

In: pixels and points of people. Out: an image [H, W, 3] uint8. Called by cli/viz_keypoints.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

_BODY = ((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10))
_HEAD = ((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6))
_FEET = ((15, 17), (15, 18), (15, 19), (16, 20), (16, 21), (16, 22))
_LEFT = {1, 3, 5, 7, 9, 11, 13, 15, 17, 18, 19}
_COLOURS = {"left": (80, 190, 255), "right": (255, 120, 90), "middle": (190, 230, 90), "hand": (255, 210, 60)}


def bones(points: int) -> list[tuple[int, int, str]]:
    """Bones (from, to, kind) of 17 (COCO) and 133 (COCO-WholeBody) points; none for other layouts (faces)."""
    if points not in (17, 133):
        return []
    chains = _BODY + _HEAD + (_FEET if points == 133 else ())
    found = []
    for a, b in chains:
        same = (a in _LEFT) == (b in _LEFT) and 0 not in (a, b)
        found.append((a, b, ("left" if a in _LEFT else "right") if same else "middle"))
    if points == 133:
        for wrist in (91, 112):
            for finger in range(5):
                chain = [wrist, *range(wrist + 1 + 4 * finger, wrist + 5 + 4 * finger)]
                found += [(a, b, "hand") for a, b in zip(chain, chain[1:])]
    return found


def draw_keypoints(
    image: np.ndarray,  # [H, W, 3] uint8
    points: Sequence[np.ndarray],  # [J, 2] pixels each
    scores: Sequence[np.ndarray],  # [J] each
    threshold: float = 0.3,
) -> np.ndarray:  # [H, W, 3] uint8
    """The image a little darker, with every point whose score reaches `threshold` and the bones between such points."""
    canvas = Image.fromarray((np.asarray(image) * 0.75).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    width = max(1, round(max(image.shape[:2]) / 250))
    for place, score in zip(points, scores):
        seen = (np.asarray(score) >= threshold) & np.isfinite(place).all(-1)
        for a, b, kind in bones(len(place)):
            if seen[a] and seen[b]:
                pen.line([*place[a], *place[b]], fill=_COLOURS[kind], width=width if kind == "hand" else 2 * width)
        for (x, y), strong in zip(place, seen):
            if strong:
                pen.ellipse([x - width, y - width, x + width, y + width], fill=(255, 255, 255))
    return np.asarray(canvas)
