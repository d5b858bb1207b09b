"""rasterize: coverage pass of the free body (6,890 vertices, 13,776 faces) in varied poses, images per second.

The other contender is the plain torch z-buffer.
"""

from __future__ import annotations

import torch

from tore_fast.body import load_body
from tore_fast.data.synth.draw import Draw
from tore_fast.data.synth.poses import sample_pose
from tore_fast.ops import rasterize

from ..harness import Case, Contender


def _difference(got, want) -> float:
    """Share of pixels with another face: implementations must agree exactly."""
    return float((got[0] != want[0]).float().mean())


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    if dtype != torch.float32:
        return []
    body = load_body("free")
    faces = torch.from_numpy(body.faces()).int().to(device)
    batch = 32 if device == "cpu" else 256
    with torch.no_grad():
        vertices = body(sample_pose(Draw(batch, 0), 1.0)).vertices.to(device)
    low, high = vertices.amin(1, keepdim=True), vertices.amax(1, keepdim=True)
    unit = (vertices - (low + high) / 2) / (high - low)[..., :2].amax(-1, keepdim=True)
    out = []
    for size, count in ((128, batch),) if quick else ((112, batch), (128, batch), (224, batch), (224, 1)):

        def make(generator, size=size, count=count):
            shift = torch.rand(count, 1, 2, device=device, generator=generator)  # part of a pixel
            xy = unit[:count, :, :2] * 0.85 * size + size / 2 + shift
            return [torch.cat((xy, unit[:count, :, 2:]), -1)]

        contenders = [
            Contender("tore_fast", lambda v, s=size: rasterize(v, faces, s, s), ours=True),
            Contender("torch scatter", lambda v, s=size: rasterize(v, faces, s, s, impl="reference")),
        ]

        def reference(v, s=size):
            return rasterize(v.float(), faces, s, s, impl="reference")  # snaps to 1/256 pixel: float64 would not differ

        traffic = count * (unit.shape[1] * 12 + size * size * 20) + faces.numel() * 4
        out.append(
            Case(
                "rasterize",
                f"{size} px B{count}",
                make,
                contenders,
                reference,
                False,
                device,
                dtype,
                bytes=traffic,
                items=count,
                check=_difference,
                error_limit=1e-9,
            )
        )
    return out
