"""Pipelines for the tests of batch prediction: cheap, slow on purpose, or killed by a certain image."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from tore_fast.body import load_body
from tore_fast.pipelines.images import ImagePipeline


class Shifted(nn.Module):
    """The rest pose, lifted by the mean of the crop; `delay_s` per call; a crop of almost pure white kills the
    process."""

    def __init__(self, delay_s: float, deadly: bool):
        super().__init__()
        self.config = SimpleNamespace(image_size=32)
        self.delay_s, self.deadly = delay_s, deadly
        body = load_body("free")
        vertices = body(torch.zeros(1, 24, 3)).vertices * torch.tensor([1.0, -1.0, -1.0])
        self.register_buffer("vertices", vertices)
        self.register_buffer("coarse", body.coarse(vertices, 2))

    def forward(self, images):
        time.sleep(self.delay_s)
        if self.deadly and (images.amin((1, 2, 3)) > 2.0).any():
            os.kill(os.getpid(), signal.SIGKILL)
        scale = 1 + 0.1 * images.mean((1, 2, 3))[:, None, None]
        camera = torch.tensor([[0.5, 0.05, -0.02]]).expand(len(images), 3)
        return SimpleNamespace(camera=camera, vertices_coarse=self.coarse * scale, vertices=self.vertices * scale)


@dataclass(frozen=True)
class Factory:
    delay_s: float = 0.0
    deadly: bool = False

    def __call__(self, worker: int = 0) -> ImagePipeline:
        torch.set_num_threads(1)
        return ImagePipeline(Shifted(self.delay_s, self.deadly), device="cpu", batch_size=4)

    def identity(self) -> dict:
        return {"model": "shifted"}
