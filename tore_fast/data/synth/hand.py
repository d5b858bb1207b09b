"""SynthHandGenerator: images of the free right hand with a forearm, for hand models.

In: the free hand (778 vertices, 16 joints in MANO's order); out: the batches of generator.py with 21 joints, wrist at
the origin. Rest pose: fingers along -x, thumb towards +z, palm towards -y. The forearm is drawn only: a tube grown from
the mesh's open wrist, so that no image shows a hole; labels speak of the 778 vertices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...body import Body
from ...geometry.rotation import axis_rotation, quaternion_to_matrix, random_rotation
from ...geometry.skeleton import HAND21, MANO16
from . import camera
from .draw import Draw
from .generator import HeldOut, SynthGenerator
from .surface import Surface
from .texture import SKIN_TONES

# The fixed evaluation sets of hands; see generator.HELD_OUT.
HELD_OUT_HAND = {
    "hard": HeldOut(seed=20_261_123, difficulty=1.0, batches=20, batch_size=50),
    "easy": HeldOut(seed=20_261_124, difficulty=0.3, batches=20, batch_size=50),
}

FINGERS = ("Index", "Middle", "Ring", "Pinky")
PARTS = ("palm", "thumb", "index", "middle", "ring", "pinky", "forearm")
_FOREARM = 6
# gesture: curl of thumb, index, middle, ring, pinky (0 straight, 1 fist), deviation, weight easy, weight full
_GESTURES = {
    "open": ((0.0, 0.03, 0.03, 0.03, 0.03), 0.05, 4, 2),
    "relaxed": ((0.2, 0.25, 0.32, 0.38, 0.42), 0.12, 4, 2.5),
    "cup": ((0.4, 0.45, 0.45, 0.48, 0.5), 0.12, 2, 2),
    "fist": ((0.8, 0.98, 1.0, 1.0, 0.98), 0.05, 1.5, 1.5),
    "point": ((0.7, 0.04, 0.95, 0.95, 0.95), 0.08, 1.5, 1.2),
    "two": ((0.75, 0.04, 0.04, 0.95, 0.95), 0.07, 1, 1),
    "three": ((0.8, 0.04, 0.04, 0.04, 0.9), 0.07, 0.5, 0.7),
    "pinch": ((0.62, 0.55, 0.3, 0.25, 0.2), 0.1, 1, 1.5),
    "thumb": ((0.0, 0.95, 0.98, 1.0, 0.98), 0.05, 1, 1),
    "call": ((0.0, 0.95, 0.98, 0.95, 0.05), 0.06, 0.3, 0.5),
    "any": ((0.4, 0.45, 0.45, 0.45, 0.45), 0.33, 0, 2),
}
# rings of the forearm: metres from the wrist, width relative to the wrist, share of the wrist's bend
_RINGS = ((0.025, 1.0, 0.6), (0.06, 1.02, 1.0), (0.13, 1.14, 1.0), (0.24, 1.34, 1.0))


class SynthHandGenerator(SynthGenerator):
    """Batches of synthetic right hands; arguments and results as SynthGenerator, with load_body("free_hand").

    `joints3d`, `joints2d` hold HAND21, `pose` 16 joints in MANO's order, `mask` 1 + index into PARTS.
    """

    joint_rows = tuple(range(21))
    framing = camera.Framing(distance=(0.35, 1.6), fill=(0.5, 0.85), cut=0.35)

    def _make_surface(self, body: Body) -> HandSurface:
        return HandSurface(body)

    def _pose(self, draw: Draw, d: float) -> Tensor:
        return sample_hand_pose(draw, d)

    def _dress(self, draw: Draw, vertices: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor, Tensor, Callable]:
        drawn = self._surface.with_forearm(draw, vertices, rotations[:, 0])
        coat = Coat(draw, self.device)
        return drawn, self._surface.normals(drawn), drawn, coat.colour


class HandSurface(Surface):
    """The hand's 778 vertices and four rings of forearm; attributes: rest x, y, z, nail, place along the forearm
    (m)."""

    loop: Tensor

    def __init__(self, body: Body) -> None:
        if "hand21" not in body.topology.regressors:
            raise ValueError(f"SynthHandGenerator: body {body.name} is no hand; use load_body('free_hand')")
        faces, rest = body.faces(), body.template.cpu().double().numpy()
        loop = border_loop(faces)
        count, n = len(rest), len(loop)
        new_faces, ring = [], loop
        for k in range(len(_RINGS)):
            following = count + k * n + np.arange(n)
            a, b, c, d = ring, np.roll(ring, -1), following, np.roll(following, -1)
            new_faces += [np.stack((b, a, c), 1), np.stack((b, c, d), 1)]  # border edges run a -> b in the hand's faces
            ring = following
        along = np.repeat([r[0] for r in _RINGS], n)
        tips = (body.topology.regressors["hand21"] @ rest)[[HAND21.index(f"{f}4") for f in ("Thumb", *FINGERS)]]
        attributes = np.zeros((count + len(along), 5))
        attributes[:count, :3] = rest
        attributes[count:, :3] = np.tile(rest[loop], (len(_RINGS), 1)) + np.outer(along, [1.0, 0, 0])
        attributes[count:, 4] = along
        owner = np.array([_part_of(name) for name in body.joint_names])[body.weights.cpu().numpy().argmax(1)]
        parts = np.concatenate([owner, np.full(len(along), _FOREARM)])
        all_faces = np.concatenate([faces, *new_faces])
        super().__init__(
            all_faces,
            all_faces,
            torch.from_numpy(parts),
            PARTS,
            torch.from_numpy(attributes),
            body.topology.regressors["hand21"],
            shadow_bias=0.006,
        )
        self.face_part[len(faces) :] = _FOREARM  # the first strip has two of its corners on the wrist
        back = self.normals(self.rest[None, :, :3])[0, :count]
        for i, tip in enumerate(tips):  # nails: the back of each last finger bone's end
            near = (self.rest[:count, :3] - torch.tensor(tip, dtype=torch.float32)).norm(dim=1) < 0.013
            facing = back[:, 1] > 0.45 if i else (back @ torch.tensor([-0.5, 0.55, 0.67])) > 0.5
            self.rest[:count, 3] = torch.where(near & facing, torch.tensor(1.0), self.rest[:count, 3])
        self.register_buffer("loop", torch.from_numpy(loop.astype(np.int64)))

    def with_forearm(self, draw: Draw, vertices: Tensor, root: Tensor) -> Tensor:
        """Vertices [B, 778 + rings, 3]: the wrist loop carried along a forearm that bends away at the wrist."""
        device = vertices.device
        bend = (draw.normal() * 24).clamp(-60, 60).to(device)
        side = (draw.normal() * 9).clamp(-22, 22).to(device)
        width = draw.uniform(1, 1, low=0.95, high=1.15).to(device)
        loop = vertices[:, self.loop] @ root  # wrist at the origin: in the hand's own axes
        centre = loop.mean(1, keepdim=True)
        rings, place, before = [], centre, 0.0
        for reach, wide, share in _RINGS:
            turned = axis_rotation("z", bend * share) @ axis_rotation("y", side * share)  # [B, 3, 3]
            place = place + (reach - before) * turned[:, None, :, 0]
            rings.append(
                (loop - centre) * (1 + (wide * width - 1) * (share if reach > 0.03 else 0.0)) @ turned.mT + place
            )
            before = reach
        return torch.cat((vertices, torch.cat(rings, 1) @ root.mT), 1)


def _part_of(joint: str) -> int:
    stem = joint.rstrip("123").lower()
    return PARTS.index(stem) if stem in PARTS else 0


def border_loop(faces: np.ndarray) -> np.ndarray:  # [F, 3] -> [n]
    """Vertices of the mesh's one open border, in the direction in which its faces run along it."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    known = {(a, b) for a, b in edges.tolist()}
    following = {a: b for a, b in known if (b, a) not in known}
    if not following:
        raise ValueError("border_loop: the mesh is closed")
    start = min(following)
    loop = [start]
    while following[loop[-1]] != start:
        loop.append(following[loop[-1]])
    if len(loop) != len(following):
        raise ValueError(f"border_loop: expected one border, {len(following) - len(loop)} more edges are open")
    return np.array(loop)


def sample_hand_pose(draw: Draw, difficulty: float) -> Tensor:  # [B, 16, 3, 3]
    """Rotations relative to the parent in MANO's order; joint 0 in camera axes. Gestures are blended with noise."""
    d = difficulty
    rows = list(_GESTURES.values())
    curl, std = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    weights = torch.tensor([r[2] * (1 - d) + r[3] * d for r in rows])
    first, second = draw.choice(weights), draw.choice(weights)
    share = torch.where(draw.chance(0.3), draw.uniform(), torch.zeros(()))[:, None]
    c = curl[first] * (1 - share) + curl[second] * share + draw.normal(5) * std[first][:, None]
    c = c.clamp(-0.06, 1.05)
    out = torch.eye(3).repeat(draw.batch, 16, 1, 1)
    spread = draw.normal(std=4) + draw.chance(0.35).float() * draw.uniform(low=4, high=11)
    for i, finger in enumerate(FINGERS):
        k, curled = MANO16.index(f"{finger}1"), c[:, 1 + i]
        noise = draw.normal(3) * (0.5 + 0.5 * d)
        base = (82 * curled + 9 * noise[:, 0]).clamp(-22, 95)
        middle = (98 * curled + 9 * noise[:, 1]).clamp(-3, 112)
        end = (0.6 * middle + 7 * noise[:, 2]).clamp(-8, 78)
        fan = spread * (1.4, 0.25, -0.6, -1.5)[i] * (1 - curled.clamp(0, 1)) + draw.normal(std=2.5)
        out[:, k] = axis_rotation("y", fan) @ axis_rotation("z", base)
        out[:, k + 1], out[:, k + 2] = axis_rotation("z", middle), axis_rotation("z", end)
    out[:, MANO16.index("Thumb1") :] = _thumb(draw, c[:, 0], d)
    out[:, 0] = sample_hand_view(draw, d)
    return out


def _thumb(draw: Draw, curl: Tensor, d: float) -> Tensor:  # [B, 3, 3, 3]
    noise = draw.normal(5) * (0.5 + 0.5 * d)
    oppose = (34 * curl + 14 * noise[:, 0]).clamp(-25, 55)  # about the hand's long axis: in front of the palm
    inward = (-18 * curl + 10 * noise[:, 1]).clamp(-40, 30)  # towards the index finger
    bone = torch.nn.functional.normalize(torch.tensor([-0.0246, -0.0178, 0.0214]), dim=0)  # second to third thumb joint
    towards = torch.tensor([-0.35, -0.2, -1.0])  # where the tip goes when the thumb bends: across the palm
    axis = torch.nn.functional.normalize(torch.linalg.cross(bone, towards), dim=0)
    out = [
        axis_rotation("x", oppose)
        @ axis_rotation("y", inward)
        @ _about(axis, (12 * curl + 6 * noise[:, 2]).clamp(-12, 30))
    ]
    out += [
        _about(axis, (a * curl + 9 * noise[:, 3 + i]).clamp(-12, b)) for i, (a, b) in enumerate(((42, 62), (58, 82)))
    ]
    return torch.stack(out, 1)


def _about(axis: Tensor, degrees: Tensor) -> Tensor:  # [3] unit, [B] -> [B, 3, 3]
    half = torch.deg2rad(degrees)[:, None] / 2
    return quaternion_to_matrix(torch.cat((half.cos(), half.sin() * axis), 1))


def sample_hand_view(draw: Draw, difficulty: float) -> Tensor:  # [B, 3, 3]
    """Root in camera axes: palm or back towards the camera, fingers up, then turned more the more difficult."""
    d = difficulty
    base = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # rest x (elbow) down, y (back) away, z (thumb) right
    back = draw.chance(0.5).float() * 180
    yaw = back + draw.normal(std=14 + 42 * d)
    pitch = (draw.normal(std=8 + 22 * d)).clamp(-75, 75)
    roll = torch.where(draw.chance(0.7 * d), draw.uniform(low=-180, high=180), draw.normal(std=15 + 25 * d))
    view = axis_rotation("z", roll) @ axis_rotation("x", pitch) @ axis_rotation("y", yaw) @ base
    anyhow = draw.chance(0.12 * d)
    return torch.where(anyhow[:, None, None], random_rotation(draw.normal(4)), view)


class Coat:
    """Skin, nails, a sleeve or a bare forearm, sometimes a glove: per-image tables, and the colour of pixels."""

    def __init__(self, draw: Draw, device: torch.device):
        b = draw.batch
        tone = draw.uniform() * (len(SKIN_TONES) - 1.001)
        low = tone.long()
        skin = torch.lerp(SKIN_TONES[low], SKIN_TONES[low + 1], (tone - low)[:, None]) + draw.normal(3, std=0.025)
        palm = skin + draw.uniform(1, high=0.35) * (torch.tensor([0.93, 0.70, 0.60]) - skin)  # palms are paler, redder
        nail = torch.where(draw.chance(0.15)[:, None], draw.uniform(3), palm * torch.tensor([1.04, 1.0, 1.02]) + 0.03)
        glove = draw.chance(0.05)[:, None]
        colour = draw.uniform(3) * draw.uniform(1, low=0.3, high=1.0)
        skin, palm, nail = (torch.where(glove, colour, t) for t in (skin, palm, nail))
        sleeve_at = torch.where(draw.chance(0.6), draw.uniform(low=0.01, high=0.12), torch.tensor(9.0))
        sleeve, stripe = draw.uniform(3), draw.uniform(3)
        wave = torch.where(draw.chance(0.3), 2 * math.pi / draw.uniform(low=0.008, high=0.04), torch.zeros(()))
        band_at = torch.where(draw.chance(0.12), draw.uniform(low=0.005, high=0.03), torch.tensor(9.0))
        band = draw.uniform(3) * 0.6
        mottle = draw.uniform(1, low=0.01, high=0.05)
        frequency = draw.uniform(3, low=90, high=320)
        columns = (
            skin,
            palm,
            nail,
            sleeve,
            stripe,
            band,
            frequency,
            mottle,
            sleeve_at[:, None],
            wave[:, None],
            band_at[:, None],
        )
        self.table = torch.cat(columns, 1).clamp(min=-20).to(device)
        assert self.table.shape == (b, 25)

    def colour(self, image: Tensor, part: Tensor, rest: Tensor) -> Tensor:  # [N], [N], [N, 5] -> [N, 3] in 0..1
        rows = self.table.index_select(0, image)
        skin, palm, nail, sleeve, stripe, band, frequency = rows[:, :21].split(3, 1)
        mottle, sleeve_at, wave, band_at = rows[:, 21:].unbind(1)
        x, y, z, is_nail, along = rest.unbind(1)
        inner = (part != _FOREARM) & (y < -0.004)
        colour = torch.where(inner[:, None], palm, skin)
        wobble = (rest[:, :3] * frequency).sin().sum(1) / 3
        colour = colour * (1 + mottle * wobble)[:, None]
        colour = torch.where((is_nail > 0.5)[:, None], nail, colour)
        colour = torch.where(((along - band_at).abs() < 0.012)[:, None], band, colour)
        cloth = torch.where(((along * wave).sin() > 0)[:, None] & (wave > 0)[:, None], stripe, sleeve)
        return torch.where((along > sleeve_at)[:, None], cloth, colour).clamp(0, 1)
