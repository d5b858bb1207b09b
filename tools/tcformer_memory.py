"""Peak memory of a TCFormer forward with part-wise clustering, by image size: MiB above what the process held before.

Linux only: reads the kernel's high-water mark of resident memory, which can be set back. One thread, one image.

    python tools/tcformer_memory.py --model tcformer_light --sides 256 512 1024
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from tore_fast.models import create_model

NARROW = dict(embed_dims=(32, 64, 160, 256), mlp_ratios=(4, 4, 4, 4), depths=(1, 1, 1, 1))


def resident(key: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB."""
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def peak(model: nn.Module, image: Tensor) -> float:
    """Growth of the resident memory while `model` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # peak := now
    before = resident("VmRSS")
    model(image)
    return resident("VmHWM") - before


def parts_of(side: int) -> tuple[int, ...]:
    """Rows and columns of parts of the three merges: parts of 64 to 256 tokens where tokens are many."""
    return (16, 16, 4, 4, 1, 1) if side >= 512 else (8, 8, 4, 4, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tcformer_light")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--narrow", action="store_true", help="half the channels, one block a stage: for a quick look")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for side in args.sides:
        torch.manual_seed(0)
        model = create_model(args.model, num_classes=4, parts=parts_of(side), **(NARROW if args.narrow else {})).eval()
        with torch.inference_mode():
            model(torch.rand(1, 3, 128, 128))  # what is loaded once
            image = torch.rand(1, 3, side, side)
            print(f"{side} px, {(side // 4) ** 2} tokens: {peak(model, image):.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
