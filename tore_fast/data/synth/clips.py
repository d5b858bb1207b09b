"""Person crops as the HMR hosts see them, single and as clips: one body, outfit, light and camera through a motion.

In: SynthGenerator's prior or rotations of real motion (data/synth/motion.py); out: square crops whose 3:4 box holds the
person, with masks and labels. Next on the way: train/smpl.py (stills) and data/synth/rendered.py (clips).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...geometry.rotation import axis_rotation
from .camera import CropView
from .draw import Draw, stream_seed
from .generator import SynthGenerator
from .poses import sample_view


class PersonCrops(SynthGenerator):
    """SynthGenerator whose crop is HMR2.0's: the person's box grown to 3:4, its height times `margin` the square's
    side.

    Args:
        margin: square side over grown box height; small shifts and zooms are drawn around it.
        others: as SynthGenerator.
    """

    def __init__(self, *args: Any, margin: float = 1.15, **options: Any) -> None:
        super().__init__(*args, **options)
        self.margin = margin

    def _view(self, draw: Draw, coarse: Tensor, d: float) -> CropView:
        view = super()._view(draw, coarse, d)
        x = coarse + view.translation[:, None]
        plane = x[..., :2] / x[..., 2:].clamp(min=0.3)
        low, high = plane.amin(1), plane.amax(1)
        width, height = (high - low).unbind(1)
        shift, zoom = self._jitter(draw)
        side = torch.maximum(height, width * 4 / 3)[:, None] * self.margin * zoom.to(coarse.device)
        return CropView(view.translation, (low + high) / 2 + shift.to(coarse.device) * side, side / 2)

    def _jitter(self, draw: Any) -> tuple[Tensor, Tensor]:  # [B, 2] shares of the side, [B, 1] factor
        return draw.uniform(2, low=-0.04, high=0.04), draw.uniform(1, low=0.92, high=1.1)


class _SameDraw(Draw):
    """Every row the same: what stays as it is through a clip."""

    def __init__(self, batch: int, *key: int | str):
        super().__init__(batch, *key)
        self._one = Draw(1, *key)

    def _spread(self, x: Tensor) -> Tensor:
        return x.repeat(self.batch, *[1] * (x.dim() - 1))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._spread(self._one.uniform(*shape, low=low, high=high))

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        return self._spread(self._one.normal(*shape, std=std))

    def chance(self, p: float, *shape: int) -> Tensor:
        return self._spread(self._one.chance(p, *shape))

    def integer(self, high: int, *shape: int) -> Tensor:
        return self._spread(self._one.integer(high, *shape))

    def choice(self, weights: Tensor, *shape: int) -> Tensor:
        return self._spread(self._one.choice(weights, *shape))


class ClipCrops(PersonCrops):
    """Crops of a whole motion: shape, clothes, light, backdrop and camera are drawn once; a tracker's jitter is added.

    Args:
        tracker_noise: standard deviation of the box's shift and zoom from frame to frame, share of its side.
        others: as PersonCrops.
    """

    def __init__(self, *args: Any, tracker_noise: float = 0.01, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tracker_noise = tracker_noise

    @torch.no_grad()
    def clip(self, rotations: Tensor, index: int, chunk: int = 64) -> dict[str, Tensor]:
        """Images of a motion [F, 24, 3, 3] (y up), its first heading replaced by a random one.

        Returns:
            As SynthGenerator.batch, rows are frames: images, mask, pose (camera axes), betas, box, translation, crop.
        """
        key = (self.seed, self.split, "clip", index)
        first = Draw(1, *key, "view")
        forward = rotations[:1, 0, :, 2]
        heading = torch.rad2deg(torch.atan2(forward[:, 0], forward[:, 2]))
        seen = rotations.clone()
        seen[:, 0] = sample_view(first, self.difficulty) @ axis_rotation("y", -heading) @ rotations[:, 0]
        betas = first.normal(self.body.num_betas).clamp(-2.5, 2.5) * (0.6 + 0.4 * self.difficulty)
        parts = []
        for a in range(0, len(seen), chunk):
            piece = seen[a : a + chunk]
            draw: Any = _SameDraw(len(piece), *key)
            draw.frames = Draw(len(piece), *key, "tracker", a)
            pixels = stream_seed("pixels", *key, a)
            parts.append(
                self._render(
                    draw, piece.to(self.device), betas.to(self.device).expand(len(piece), -1), self.difficulty, pixels
                )
            )
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0] if k != "vertices"}

    def _jitter(self, draw: Any) -> tuple[Tensor, Tensor]:
        shift, zoom = super()._jitter(draw)
        wobble = draw.frames.normal(3, std=self.tracker_noise)
        return shift + wobble[:, :2], zoom * (1 + wobble[:, 2:])

    def _backdrop(self, draw: Draw, d: float, noise: torch.Generator) -> Tensor:
        one = Draw(1, self.seed, self.split, "backdrop", int(draw.integer(2**31 - 1)[0]))
        still = torch.Generator(self.device).manual_seed(int(one.integer(2**31 - 1)))
        return super()._backdrop(one, d, still).repeat(draw.batch, 1, 1, 1)
