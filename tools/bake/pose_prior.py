"""Bakes the pose prior of body/fit: a Gaussian of log rotations, half motion capture, half the synthetic prior.

    python -m tools.bake.pose_prior ../shared/data/mocap      # writes tore_fast/body/assets/pose_prior.safetensors

The motions (any that `load_pose_bank` reads; the shipped file comes from CMU clips) are mirrored. As many poses are
drawn from data/synth/poses.py at difficulty 1. Joints of 17-joint motions say nothing about ankles, feet and wrists:
these come from the synthetic half and from the 4 degrees added everywhere. Only the 69 means and a 69 x 69 factor are
kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from tore_fast.body.fit.prior import FILE, gaussian
from tore_fast.data.synth import load_pose_bank
from tore_fast.data.synth.draw import Draw
from tore_fast.data.synth.motion import mirror_rotations
from tore_fast.data.synth.poses import sample_pose
from tore_fast.geometry.rotation import matrix_to_axis_angle

SPREAD_DEGREES, STRIDE, SEED = 4.0, 20, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("motions", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    poses = load_pose_bank(args.motions, stride=STRIDE).poses
    poses = torch.cat((poses, mirror_rotations(poses)))
    drawn = sample_pose(Draw(len(poses), SEED, "pose prior"), 1.0)
    logs = matrix_to_axis_angle(torch.cat((poses, drawn))[:, 1:].double()).flatten(1)
    mean, factor = gaussian(logs, SPREAD_DEGREES)
    save_file({"mean": mean.float(), "precision_factor": factor.float().contiguous()}, args.out)
    print(f"{len(poses)} poses of motions, as many drawn -> {args.out.name} ({args.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
