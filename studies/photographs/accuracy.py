"""Joint errors on photographs with true 3D: the default, without its second crops' mirrored pass, and the net's own
world points.

    python -m studies.photographs.accuracy PHOTOS --truth PHOTOS/joints_3d.json

The truth is JSON: {"joints": {"photo.jpg": [[x, y, z], ...]}}, twelve limb joints in the order of TWELVE, metres,
camera axes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from tore_fast.eval.metrics import mpjpe, pa_mpjpe
from tore_fast.geometry.skeleton import SMPL24
from tore_fast.models.keypoints.blazepose import LANDMARKS
from tore_fast.pipelines.photographs import PhotographPipeline

TWELVE = (
    "R_Ankle R_Knee R_Hip L_Hip L_Knee L_Ankle R_Wrist R_Elbow R_Shoulder L_Shoulder L_Elbow L_Wrist".split()
)  # the order of the truth
HIPS = (TWELVE.index("R_Hip"), TWELVE.index("L_Hip"))
OF_BODY = [SMPL24.names.index(n) for n in TWELVE]
OF_LANDMARKS = [LANDMARKS.index({"R": "right_", "L": "left_"}[n[0]] + n[2:].lower()) for n in TWELVE]


def errors(predicted: list[Tensor], true: list[Tensor]) -> tuple[Tensor, Tensor]:
    """PA-MPJPE and MPJPE about the middle of the hips, mm, of each photograph."""
    a, b = torch.stack(predicted), torch.stack(true)
    return 1e3 * pa_mpjpe(a, b), 1e3 * mpjpe(a, b, HIPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    args = parser.parse_args()
    truth = {n: torch.tensor(j) for n, j in json.loads(args.truth.read_text())["joints"].items()}
    for label, mirrored in (("default", True), ("no mirrored pass", False)):
        bodies: list[Tensor] = []
        points: list[Tensor] = []
        true, names = [], []
        pipeline = PhotographPipeline(mirrored=mirrored)
        for name, result in zip(truth, pipeline.stream(args.photos / n for n in truth)):
            if not result.people:
                print(f"{name}: {result.error or 'nobody found'}; left out")
                continue
            person = result.people[0]
            bodies.append(torch.from_numpy(person.joints_3d[OF_BODY]).float())
            points.append(torch.from_numpy(person.landmarks_3d[OF_LANDMARKS]).float())
            true.append(truth[name])
            names.append(f"{name}{'' if person.believed else ' (not believed)'}")
        for what, values in (("fitted bodies", bodies), ("world points of the net", points)):
            pa, mean = errors(values, true)
            print(f"{label}, {what}: PA-MPJPE {pa.mean():.1f} mm, MPJPE {mean.mean():.1f} mm ({len(pa)} photographs)")
            for row in zip(names, pa.tolist(), mean.tolist()):
                print("  {}: {:.0f} / {:.0f}".format(*row))


if __name__ == "__main__":
    main()
