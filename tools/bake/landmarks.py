"""Bakes the built-in person detector and landmark net out of MediaPipe's wheel (code and weights Apache-2.0).

    pip install tflite
    pip download --no-deps --python-version 311 --only-binary=:all: mediapipe==0.10.21
    python -m tools.bake.landmarks mediapipe-0.10.21-*.whl     # writes
    tore_fast/models/assets/{person_detector,body_landmarks}

Only the two .tflite files are taken out of the wheel, and only if their SHA-256 is the one in
models/keypoints/_mediapipe.py. Later wheels carry no such files. Nothing of the wheel is installed, run or needed at
run time.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

import torch

from tore_fast.models import load, save
from tore_fast.models.keypoints._mediapipe import SHA256, card, load_tflite, name_of_file

ASSETS = Path(__file__).resolve().parents[2] / "tore_fast" / "models" / "assets"
MEMBERS = {
    "person_detector": "mediapipe/modules/pose_detection/pose_detection.tflite",
    "body_landmarks": "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
}


def bake(wheel: Path, out: Path) -> None:
    """Writes one checkpoint folder a net; ValueError where a file is another than the published one or loses digits."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        for name, member in MEMBERS.items():
            file = Path(scratch) / Path(member).name
            file.write_bytes(archive.read(member))
            if name_of_file(file) != name:
                raise ValueError(f"{wheel}: {member}: expected SHA-256 {SHA256[name]}; this is another file")
            model, _ = load_tflite(file)
            folder = save(model, out / name, name, torch.float16, **card(name))
            stored = load(folder).state_dict()
            if any(not torch.equal(v, stored[k]) for k, v in model.state_dict().items()):
                raise ValueError(f"{member}: float16 loses digits of the weights")
            size = (folder / "model.safetensors").stat().st_size
            print(f"{folder}: {sum(v.numel() for v in stored.values()) / 1e6:.2f} M numbers, {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="mediapipe-0.10.21-*.whl")
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    bake(args.wheel, args.out)


if __name__ == "__main__":
    main()
