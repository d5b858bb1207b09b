"""HoT's figures: which frames of a window stay (7, 9), the groups they stand for (10), poses beside the truth (11, 14).

In: kept frames, groups and poses of windows. Out: images [H, W, 3] uint8. Called by cli/viz_frames.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..geometry.skeleton import SMPL24
from .stick_figure import BONES

_BACK, _KEPT, _INK = (232, 232, 232), (38, 70, 160), (40, 40, 40)
_SIDES = {"left": (31, 119, 180), "right": (214, 39, 40), "middle": (68, 68, 68)}
_TRUTH = (150, 150, 150)


def kept_panel(kept: np.ndarray, cell: tuple[int, int] = (0, 4)) -> np.ndarray:  # [N, F] bool
    """One row per sample, kept frames dark; below, how often each frame was kept, as bars up to 100 %."""
    samples, frames = kept.shape
    width = cell[0] or max(2, 720 // frames)
    left, bars, label = 56, 90, 18
    page = Image.new("RGB", (left + frames * width + 8, 2 * label + samples * cell[1] + bars + 34), "white")
    draw = ImageDraw.Draw(page)
    draw.text((left, 3), f"kept frames of {samples} windows of {frames}", fill=_INK)
    rows = np.where(kept[..., None], _KEPT, _BACK).astype(np.uint8)
    rows = rows.repeat(cell[1], 0).repeat(width, 1)
    page.paste(Image.fromarray(rows), (left, label))
    top = label + samples * cell[1] + label
    share = kept.mean(0)
    draw.text((left, top - label + 3), "share of the windows that keep a frame", fill=_INK)
    for i, s in enumerate(share):
        x = left + i * width
        draw.rectangle([x, top + bars * (1 - s), x + width - 2, top + bars], fill=_KEPT)
    for text, y in (("100 %", top), ("0 %", top + bars)):
        draw.text((6, y - 6), text, fill=_INK)
        draw.line([left - 4, y, left + frames * width, y], fill=(190, 190, 190))
    for f in sorted({0, (frames - 1) // 2, frames - 1}):
        draw.text((left + f * width - (12 if f == frames - 1 else 0), top + bars + 4), str(f), fill=_INK)
    draw.text((left, top + bars + 18), "frame of the window", fill=_INK)
    return np.asarray(page)


def figure(pose: np.ndarray, size: int, reach: float, truth: np.ndarray | None = None) -> np.ndarray:
    """[size, size, 3]: a pose from the front in colours of its sides, the true one behind it in grey."""
    page = Image.new("RGB", (2 * size, 2 * size), "white")
    draw = ImageDraw.Draw(page)
    for points, colours, width in ((truth, None, 9), (pose, _SIDES, 5)):
        if points is None:
            continue
        at = size + points[:, :2] * 0.92 * size / reach
        for a, b, side in BONES:
            draw.line([*at[a], *at[b]], fill=_TRUTH if colours is None else colours[side], width=width)
    return np.asarray(page.resize((size, size), Image.Resampling.LANCZOS))


def skeleton_figure(joints: np.ndarray, size: int, reach: float) -> np.ndarray:
    """[size, size, 3]: SMPL's 24 joints [24, 3] from the front, centred on the pelvis."""
    page = Image.new("RGB", (2 * size, 2 * size), "white")
    draw = ImageDraw.Draw(page)
    at = size + joints[:, :2] * 0.92 * size / reach
    for j, parent in enumerate(SMPL24.parents):
        if parent >= 0:
            side = "left" if j in SMPL24.left else "right" if j in SMPL24.right else "middle"
            draw.line([*at[parent], *at[j]], fill=_SIDES[side], width=7)
    return np.asarray(page.resize((size, size), Image.Resampling.LANCZOS))


def group_panel(poses: np.ndarray, group: np.ndarray, kept: np.ndarray, size: int = 96) -> np.ndarray:
    """Every frame in the colour of the kept frame that it is nearest to; under each kept one its pose.

    Args:
        poses: [F, 17, 3]; group: [F] number of the kept frame; kept: [f] frames, ascending.
    """
    frames, count = len(group), len(kept)
    columns = min(count, 9)
    width = columns * size
    page = Image.new("RGB", (width, 60 + -(-count // columns) * (size + 16)), "white")
    draw = ImageDraw.Draw(page)
    hues = [tuple(_hue(i, count)) for i in range(count)]
    draw.text((4, 3), f"{frames} frames in {count} groups; the marked frame of each stays", fill=_INK)
    step = width / frames
    for f, g in enumerate(group):
        draw.rectangle([f * step, 20, (f + 1) * step - 1, 42], fill=hues[g])
    for f in kept:
        draw.polygon([((f + 0.2) * step, 54), ((f + 0.8) * step, 54), ((f + 0.5) * step, 44)], fill=_INK)
    reach = float(np.abs(poses[..., :2]).max()) or 1.0
    for i, f in enumerate(kept):
        x, y = i % columns * size, 60 + i // columns * (size + 16)
        page.paste(Image.fromarray(figure(poses[f], size, reach)), (x, y))
        draw.rectangle([x + 4, y + size + 2, x + size - 4, y + size + 12], fill=hues[i])
        text = f"{f}: {int((group == i).sum())}"
        draw.text((x + 8, y + size + 1), text, fill="white" if sum(hues[i]) < 420 else _INK)
    return np.asarray(page)


def pose_panel(
    poses: np.ndarray, truth: np.ndarray, kept: np.ndarray, shown: Sequence[int], size: int = 128
) -> np.ndarray:
    """Predicted poses over the true ones (grey) at the frames `shown`; kept frames are framed, with errors in mm."""
    columns = min(len(shown), 7)
    rows = -(-len(shown) // columns)
    page = Image.new("RGB", (columns * size, 20 + rows * (size + 18)), "white")
    draw = ImageDraw.Draw(page)
    draw.text((4, 3), "prediction over the truth (grey); framed: kept by the model, others recovered", fill=_INK)
    reach = float(max(np.abs(poses[..., :2]).max(), np.abs(truth[..., :2]).max())) or 1.0
    for i, f in enumerate(shown):
        x, y = i % columns * size, 20 + i // columns * (size + 18)
        page.paste(Image.fromarray(figure(poses[f], size, reach, truth[f])), (x, y + 16))
        mm = 1000 * np.linalg.norm(poses[f] - truth[f], axis=-1).mean()
        draw.text((x + 6, y + 3), f"{f}: {mm:.0f} mm", fill=_INK)
        if f in kept:
            draw.rectangle([x + 1, y + 1, x + size - 3, y + size + 14], outline=(210, 120, 0), width=2)
    return np.asarray(page)


def _hue(i: int, count: int) -> list[int]:
    """Neighbouring groups in unlike colours."""
    import colorsys

    return [round(255 * c) for c in colorsys.hsv_to_rgb((i * 0.381966) % 1.0, 0.6, 0.85 - 0.25 * (i % 2))]
