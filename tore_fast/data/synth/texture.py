"""Clothes: which garment a surface point belongs to, and its colour, from rest-pose coordinates and per-image tables.

In: part, rest position and image number of every visible pixel; out: albedo in 0..1. Sleeve, hem and waist lines are
planes in the rest pose, patterns are sums of sines and a noise texture along rest coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .draw import Draw
from .surface import HAIR, LOWER, NUM_GARMENTS, SHOES, SKIN, UPPER, ClothedSurface

SKIN_TONES = torch.tensor(
    [
        [0.97, 0.82, 0.72],
        [0.91, 0.72, 0.58],
        [0.80, 0.60, 0.45],
        [0.64, 0.45, 0.32],
        [0.45, 0.30, 0.21],
        [0.29, 0.19, 0.14],
    ]
)
_HAIR_TONES = torch.tensor(
    [[0.07, 0.06, 0.05], [0.20, 0.13, 0.09], [0.40, 0.26, 0.14], [0.72, 0.56, 0.33], [0.62, 0.60, 0.58]]
)
_NOISE_SIZE = 64


class Outfit:
    """Per-image tables of one batch."""

    def __init__(self, draw: Draw, surface: ClothedSurface, device: torch.device):
        m = surface.marks
        b = draw.batch
        kind = draw.choice(torch.tensor([0.45, 0.3, 0.1, 0.15]))  # sleeves: short, long, none, any
        shoulder, elbow, wrist = m["shoulder"], m["elbow"], m["wrist"]
        any_length = draw.uniform(low=shoulder, high=wrist)
        short = shoulder + (elbow - shoulder) * draw.uniform(low=0.35, high=0.95)
        sleeve = torch.stack((short, torch.full((b,), wrist + 0.03), torch.full((b,), shoulder - 0.02), any_length))
        self.sleeve = sleeve.gather(0, kind[None])[0]
        kind = draw.choice(torch.tensor([0.6, 0.3, 0.1]))  # legs: long, short, any
        hip, knee, ankle = m["hip"], m["knee"], m["ankle"]
        long = torch.full((b,), ankle + 0.02) - 0.05 * draw.uniform()
        shorts = knee + (hip - knee) * draw.uniform(low=-0.1, high=0.55)
        self.hem = torch.stack((long, shorts, draw.uniform(low=ankle, high=hip - 0.05))).gather(0, kind[None])[0]
        self.waist = draw.uniform(low=hip - 0.09, high=hip + 0.12)
        self.collar = m["neck"] - draw.uniform(low=-0.01, high=0.07)
        bare = draw.chance(0.1)
        self.shoe_top = torch.where(bare, torch.tensor(-9.0), m["ankle"] + draw.uniform(low=-0.02, high=0.05))
        self.hair_back = torch.where(draw.chance(0.45), draw.uniform(low=-0.01, high=0.05), torch.tensor(-1.0))
        self.beard = draw.chance(0.15).float()
        self.logo = torch.where(draw.chance(0.25), draw.uniform(low=0.03, high=0.11), torch.tensor(0.0))
        columns = (self.sleeve, self.hem, self.waist, self.collar, self.shoe_top, self.hair_back, self.beard, self.logo)
        self.lines = torch.stack(columns, 1).to(device)  # [B, 8]
        self.paint = _paint(draw).to(device)  # [B * 5, 17]
        inflate = draw.uniform(2, high=0.02) * draw.uniform(2)
        self.inflate = inflate.to(device)  # [B, 2] metres: upper, lower
        noise = torch.nn.functional.avg_pool2d(
            torch.randn(1, 1, _NOISE_SIZE + 2, _NOISE_SIZE + 2, generator=draw._g), 3, 1
        )
        self.noise = (noise / noise.std()).flatten().to(device)

    def thickness(self, surface: ClothedSurface) -> Tensor:  # [B, V] metres
        """How far cloth stands off the skin at every vertex: a little on trunk and arms, a little on the legs."""
        part = surface.vertex_part
        upper = (surface.is_torso[part] | surface.is_arm[part]).float()
        lower = surface.is_leg[part].float()
        return self.inflate[:, :1] * upper + self.inflate[:, 1:] * lower


def _colour(draw: Draw, count: int) -> Tensor:  # [B, count, 3]
    """Mostly muted clothes colours: grey, dark or bright, with a share of strong ones."""
    grey = draw.uniform(count, 1) ** 1.2
    tint = draw.uniform(count, 3) - 0.5
    strength = torch.where(draw.chance(0.3, count, 1), torch.tensor(1.0), torch.tensor(0.35))
    return (0.04 + 0.92 * grey + strength * tint).clamp(0.02, 0.98)


def _paint(draw: Draw) -> Tensor:  # [B * 5, 17]: colour, second colour, third colour, fu, fv, phases, a, b, c, offset
    b = draw.batch
    tone = draw.uniform() * (len(SKIN_TONES) - 1.001)
    low = tone.long()
    skin = torch.lerp(SKIN_TONES[low], SKIN_TONES[low + 1], (tone - low)[:, None]) + draw.normal(3, std=0.02)
    hair = _HAIR_TONES[draw.integer(len(_HAIR_TONES))] * draw.uniform(1, low=0.7, high=1.2)
    bald = draw.chance(0.08)[:, None]
    hair = torch.where(bald, skin * 0.97, hair)
    base = _colour(draw, NUM_GARMENTS)
    base[:, SKIN], base[:, HAIR] = skin, hair
    same = draw.chance(0.12)[:, None]  # overalls
    base[:, LOWER] = torch.where(same, base[:, UPPER], base[:, LOWER])
    second, third = _colour(draw, NUM_GARMENTS), _colour(draw, NUM_GARMENTS)
    # pattern: none, stripes, stripes the other way, checks, blotches
    kind = draw.choice(torch.tensor([0.5, 0.13, 0.13, 0.09, 0.15]), NUM_GARMENTS)
    shares = torch.tensor(
        [[0, 0, 0, -9], [0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, -0.3]], dtype=torch.float32
    )[kind]
    wave = 2 * torch.pi / draw.uniform(NUM_GARMENTS, 2, low=0.03, high=0.14)
    phase = draw.uniform(NUM_GARMENTS, 2, high=6.28)
    shares[:, SKIN] = torch.tensor([0.0, 0, 0, -9])
    shares[:, HAIR] = torch.tensor([0.0, 0, 0, -9])
    table = torch.cat((base, second, third, wave, phase, shares), -1)  # 3 + 3 + 3 + 2 + 2 + 4
    return table.clamp(-20, 400).flatten(0, 1).contiguous().view(b * NUM_GARMENTS, -1)


def albedo(
    outfit: Outfit,
    surface: ClothedSurface,
    image: Tensor,  # [N] image number of each pixel
    part: Tensor,  # [N] part label
    rest: Tensor,  # [N, 3] rest position
) -> tuple[Tensor, Tensor]:  # [N, 3] in 0..1, garment [N]
    sleeve, hem, waist, collar, shoe_top, hair_back, beard, logo = outfit.lines.index_select(0, image).unbind(1)
    x, y, z = rest.unbind(1)
    side = x.abs()
    head, torso, arm = surface.is_head[part], surface.is_torso[part], surface.is_arm[part] | surface.is_hand[part]
    leg, foot = surface.is_leg[part], surface.is_foot[part]
    nose_y, _ = surface.marks["nose"]

    garment = torch.where(surface.is_scalp[part], HAIR, SKIN)
    garment = torch.where(head & (z < hair_back) & (y > collar), HAIR, garment)
    dressed = (torso & (y < collar)) | (arm & (side < sleeve))
    garment = torch.where(dressed, UPPER, garment)
    garment = torch.where((leg & (y > hem)) | ((torso | leg) & (y < waist) & (y > hem)), LOWER, garment)
    garment = torch.where(foot & (y < shoe_top), SHOES, garment)
    garment = torch.where(leg & (y > waist), UPPER, garment)
    chin = head & (z > 0.02) & (y < nose_y - 0.028) & (y > nose_y - 0.1) & (beard > 0)
    brow = head & ((y - nose_y - 0.053).abs() < 0.004) & ((side - 0.034).abs() < 0.015) & (z > 0.05)
    garment = torch.where(chin | brow, HAIR, garment)

    rows = outfit.paint.index_select(0, image * NUM_GARMENTS + garment)
    along, across = torch.where(arm, side, y), torch.where(arm, y, x)  # stripes run round sleeves
    u, v = across * rows[:, 9] + rows[:, 11], along * rows[:, 10] + rows[:, 12]
    cell = ((u * 0.35).long() % _NOISE_SIZE) * _NOISE_SIZE + (v * 0.35).long() % _NOISE_SIZE
    blotch = outfit.noise[cell.remainder(_NOISE_SIZE * _NOISE_SIZE)]
    value = rows[:, 13] * u.sin() + rows[:, 14] * v.sin() + rows[:, 15] * blotch + rows[:, 16]
    colour = torch.where((value > 0)[:, None], rows[:, 3:6], rows[:, :3])
    print_ = torso & (z > 0) & (side < logo) & ((y - collar + 0.18).abs() < 0.7 * logo) & (garment == UPPER)
    colour = torch.where(print_[:, None], rows[:, 6:9], colour)

    eye = head & (z > 0.05) & (((side - 0.032) / 0.012) ** 2 + ((y - nose_y - 0.034) / 0.006) ** 2 < 1)
    mouth = head & (z > 0.05) & ((side / 0.025) ** 2 + ((y - nose_y + 0.045) / 0.008) ** 2 < 1)
    colour = torch.where(eye[:, None], colour * 0.35, colour)
    red = colour.new_tensor([0.85, 0.5, 0.5])
    return torch.where(mouth[:, None], colour * red, colour), garment
