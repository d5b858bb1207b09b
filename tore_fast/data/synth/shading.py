"""Light: two directional lights, a sky-like ambient term and a soft shadow of the first light.

In: per-pixel normals and positions in camera axes (y down); out: light per pixel. The shadow is a depth map of the
subject's (coarser) shadow mesh seen from the light, compared at four neighbouring texels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import rasterize
from .draw import Draw
from .surface import Surface

_MAP = 64  # texels


class Lights:
    def __init__(self, draw: Draw, device: torch.device):
        def direction(up: float) -> Tensor:  # towards the light; y down, z away from the camera
            v = draw.normal(3)
            v[:, 1] = -v[:, 1].abs() * 0.8 - up
            v[:, 2] = -v[:, 2].abs() * 0.9 + 0.25
            return v / v.norm(dim=1, keepdim=True)

        first, second = direction(0.35), direction(0.0)
        power = torch.stack((draw.uniform(low=0.35, high=0.95), draw.uniform(high=0.4)), 1)
        tint = 1 + 0.1 * draw.normal(2, 3).clamp(-2, 2)
        ambient = draw.uniform(1, low=0.3, high=0.72) * (1 + 0.05 * draw.normal(3))
        soft = draw.uniform(low=0.35, high=1.0)  # how dark a shadow is
        self.direction = torch.stack((first, second), 1).to(device)  # [B, 2, 3]
        self.colour = (power[..., None] * tint).to(device)  # [B, 2, 3]
        self.ambient = ambient.to(device)  # [B, 3]
        self.depth_of_shadow = soft.to(device)  # [B]


def light_at(lights: Lights, image: Tensor, normal: Tensor, lit: Tensor) -> Tensor:  # [N], [N, 3], [N] -> [N, 3]
    direction, colour = lights.direction.index_select(0, image), lights.colour.index_select(0, image)
    cosine = (direction * normal[:, None]).sum(-1).clamp(min=0)
    first = (cosine[:, :1] * lit[:, None]) * colour[:, 0]
    sky = 0.85 - 0.15 * normal[:, 1:2]  # y down: surfaces that look up see more sky
    return first + cosine[:, 1:] * colour[:, 1] + lights.ambient.index_select(0, image) * sky


class ShadowMap:
    """Depth of the subject seen along the first light; surface.shadow_bias covers inflated cloth and a coarse shadow
    mesh."""

    def __init__(self, lights: Lights, surface: Surface, mesh: Tensor):  # mesh [B, V, 3] root-centred
        light = lights.direction[:, 0]
        helper = light.new_tensor([0.0, 0.0, 1.0]).expand_as(light)
        right = torch.linalg.cross(light, helper)
        right = right / right.norm(dim=1, keepdim=True).clamp(min=1e-6)
        down = torch.linalg.cross(light, right)
        self.axes = torch.stack((right, down, -light), 2)  # columns; depth grows away from the light
        seen = mesh @ self.axes
        low, high = seen[..., :2].amin(1), seen[..., :2].amax(1)
        self.low, self.scale = low, (_MAP - 2) / (high - low).amax(1, keepdim=True).clamp(min=0.1)
        texel = (seen[..., :2] - low[:, None]) * self.scale[:, None] + 1
        self.depth = rasterize(torch.cat((texel, seen[..., 2:]), -1), surface.shadow_faces, _MAP, _MAP).depth.flatten()
        self.lights, self.bias = lights, surface.shadow_bias

    def lit(self, image: Tensor, point: Tensor) -> Tensor:  # [N], [N, 3] root-centred -> [N] in 0..1
        seen = (point[:, None] @ self.axes.index_select(0, image))[:, 0]
        texel = (seen[:, :2] - self.low[image]) * self.scale[image] + 0.5  # + 1 - half a texel
        corner = texel.floor()
        fx, fy = (texel - corner).unbind(1)
        x0, y0 = corner.long().unbind(1)
        total = torch.zeros_like(fx)
        for dy, wy in ((0, 1 - fy), (1, fy)):
            for dx, wx in ((0, 1 - fx), (1, fx)):
                index = (image * _MAP + (y0 + dy).clamp(0, _MAP - 1)) * _MAP + (x0 + dx).clamp(0, _MAP - 1)
                total = total + wx * wy * (self.depth[index] > seen[:, 2] - self.bias)
        return 1 - self.lights.depth_of_shadow[image] * (1 - total)
