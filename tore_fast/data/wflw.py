"""WFLW: 98 face landmarks with six test subsets, from the official annotation text files.

In: `list_98pt_rect_attr_{train,test}.txt` (196 coordinates, 4 rectangle corners, 6 attributes, image name per line) and
the image folder; out: face crops with heat-map targets, and the faces eval/nme.py scores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..geometry.skeleton import mirror_of_pairs
from .topdown import CropAugment, Instance, TopDownDataset

NUM_KEYPOINTS = 98
SUBSETS = ("pose", "expression", "illumination", "makeup", "occlusion", "blur")  # order of the attribute columns
EYE_CORNERS = (60, 72)  # outer corners of both eyes: the normalising distance of the NME
AUGMENT = CropAugment(shift_p=0.0, scale=0.25, rotation_deg=30.0, half_body_p=0.0)
MIRROR = mirror_of_pairs(
    NUM_KEYPOINTS,
    [
        *((i, 32 - i) for i in range(16)),  # contour
        (33, 46),
        (34, 45),
        (35, 44),
        (36, 43),
        (37, 42),
        (38, 50),
        (39, 49),
        (40, 48),
        (41, 47),  # brows
        (55, 59),
        (56, 58),  # nose
        (60, 72),
        (61, 71),
        (62, 70),
        (63, 69),
        (64, 68),
        (65, 75),
        (66, 74),
        (67, 73),
        (96, 97),  # eyes, pupils
        (76, 82),
        (77, 81),
        (78, 80),
        (83, 87),
        (84, 86),
        (88, 92),
        (89, 91),
        (93, 95),  # mouth
    ],
)


class WFLWError(ValueError):
    """An annotation line that cannot be used; the text names the file, the line and what was expected."""


def read_wflw(annotations: str | Path, images: str | Path) -> tuple[list[Instance], np.ndarray]:
    """Faces and their attributes [F, 6] bool (columns: SUBSETS) of an official list file."""
    path = Path(annotations)
    if not path.is_file():
        raise WFLWError(f"{path}: no such annotation file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise WFLWError(f"{path}: not a text file") from None
    faces, attributes = [], []
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if not parts:
            continue
        columns = 2 * NUM_KEYPOINTS + 4 + len(SUBSETS) + 1
        if len(parts) != columns:
            raise WFLWError(f"{path}: line {number}: expected {columns} columns, got {len(parts)}")
        try:
            numbers = np.array([float(v) for v in parts[:-1]])
        except ValueError as e:
            raise WFLWError(f"{path}: line {number}: {e}") from None
        if not np.isfinite(numbers).all():
            raise WFLWError(f"{path}: line {number}: expected finite numbers, got {line[:40]} ...")
        points = np.ones((NUM_KEYPOINTS, 3), np.float32)
        points[:, :2] = numbers[: 2 * NUM_KEYPOINTS].reshape(-1, 2)
        x0, y0, x1, y1 = numbers[2 * NUM_KEYPOINTS : 2 * NUM_KEYPOINTS + 4]
        if x1 <= x0 or y1 <= y0:
            raise WFLWError(f"{path}: line {number}: the rectangle {(x0, y0, x1, y1)} is empty")
        box = (x0, y0, x1 - x0, y1 - y0)
        faces.append(Instance(Path(images) / parts[-1], number, box, points, box[2] * box[3], 1.0, number))
        attributes.append(numbers[-len(SUBSETS) :] > 0)
    if not faces:
        raise WFLWError(f"{path}: holds no face")
    return faces, np.array(attributes)


def wflw_dataset(
    faces: list[Instance], image_size: tuple[int, int] = (256, 256), augment: CropAugment | None = None, seed: int = 0
) -> TopDownDataset:
    """Crops with 98 targets of sigma 1.5; `augment=AUGMENT` is the recipe of the HRNet landmark code."""
    return TopDownDataset(faces, image_size, MIRROR, augment, sigma=1.5, seed=seed)
