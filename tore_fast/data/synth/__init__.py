"""Synthetic training images of the licence-free body (embedded_default.md section 5): generator, shards, reader."""

from .generator import HELD_OUT, HeldOut, SynthGenerator, normalize_images
from .motion import load_pose_bank, pose_from_joints
from .poses import PoseBank
from .shards import SynthSettings, SynthShards, write_shards

__all__ = [
    "HELD_OUT",
    "HeldOut",
    "PoseBank",
    "SynthGenerator",
    "SynthSettings",
    "SynthShards",
    "load_pose_bank",
    "normalize_images",
    "pose_from_joints",
    "write_shards",
]
