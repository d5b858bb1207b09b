"""Synthetic training images of the licence-free body: generator, shards, reader."""

from ...body import Body
from .generator import HELD_OUT, HeldOut, SynthGenerator
from .hand import HELD_OUT_HAND, SynthHandGenerator
from .motion import load_pose_bank
from .poses import PoseBank
from .shards import SynthSettings, SynthShards, write_shards

__all__ = [
    "HELD_OUT",
    "HELD_OUT_HAND",
    "HeldOut",
    "PoseBank",
    "SynthGenerator",
    "SynthHandGenerator",
    "SynthSettings",
    "SynthShards",
    "generator_class",
    "held_out",
    "load_pose_bank",
    "write_shards",
]


def generator_class(body: Body) -> type[SynthGenerator]:
    """The generator that draws a body: people, or right hands where it has hand joints."""
    return SynthHandGenerator if "hand21" in body.topology.regressors else SynthGenerator


def held_out(body: Body) -> dict[str, HeldOut]:
    """The fixed evaluation sets of what `body` is: HELD_OUT or HELD_OUT_HAND."""
    return HELD_OUT_HAND if "hand21" in body.topology.regressors else HELD_OUT
