"""Synthetic training images of the licence-free body (embedded_default.md section 5): generator, shards, reader."""

from .generator import HELD_OUT, HeldOut, SynthGenerator, normalize_images
from .poses import PoseBank

__all__ = ["HELD_OUT", "HeldOut", "PoseBank", "SynthGenerator", "normalize_images"]
