"""Runner of the BlazePose cases: the built-in person detector and landmark net against the original interpreter's
outputs."""

from __future__ import annotations

import torch

from tore_fast.models import load
from tore_fast.models.default import default_folder

from .case import Case


def runner(case: Case):
    return run if case.model == "person_detector and body_landmarks" else None


def run(case: Case) -> None:
    image = torch.from_numpy(case.arrays["image"]).permute(2, 0, 1)[None].float() / 255
    first, last = case.config["detector_window"]
    window = image[..., first:last, first:last]
    with torch.inference_mode():
        scores, boxes = load(default_folder("person_detector")).raw(window)
        points, score, world, heat = load(default_folder("body_landmarks")).raw(image)
    case.close("scores", scores[0], atol=4e-4)
    case.close("boxes", boxes[0], atol=1.5e-3)  # px of 224; values reach 800, where float32 leaves 5e-4 on either side
    likely = scores[0].sigmoid() > 0.01
    assert (boxes[0, likely] - case.stored("boxes")[likely]).abs().max() <= 4e-4
    case.close("points", points[0], atol=2e-3)  # px of 256
    case.close("score", score, atol=2e-5)  # a sigmoid of fp16 weights; kernels of other processors add 6e-6
    case.close("world", world[0], atol=2.5e-5)  # metres
    case.close("heat", heat[0, case.config["heat_channels"]], atol=1.6e-4)
