"""How the pipelines run: dataclasses that the command line and Python share."""

from __future__ import annotations

from dataclasses import dataclass

from .._device import PRECISIONS

MASK_SOURCES = ("auto", "ellipse", "none")
BOX_RULES = ("hmr2", "tight")  # of geometry/crop.py: those of the models that videos run through


@dataclass
class VideoOptions:
    """How a pipeline runs."""

    batch_size: int = 32  # crops per host call
    chunk_frames: int = 64  # frames between two commits (what a crash can cost)
    box_rule: str = "hmr2"
    masks: str = "auto"  # ellipse | none | auto: given masks, else none
    focal_px: float | None = None
    fov_deg: float | None = None  # vertical
    principal_px: tuple[float, float] | None = None  # default: the image's centre
    overlap: int = 0
    max_gap: int = 15
    noise: str = "seeded"
    seed: int = 0
    denoising_steps: int = 1  # calls of the denoiser per clip; the paper uses one
    ik_mode: str = "adaptive"  # or naive
    betas_mode: str = "median"  # or per_frame
    rotmats: bool = False
    precision: str = "fp32"  # or bf16, fp16 (autocast of the networks)

    def __post_init__(self) -> None:
        words = {
            "masks": MASK_SOURCES,
            "box_rule": BOX_RULES,
            "noise": ("seeded", "zeros"),
            "ik_mode": ("adaptive", "naive"),
            "betas_mode": ("median", "per_frame"),
            "precision": tuple(PRECISIONS),
        }
        for name, allowed in words.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"VideoOptions: {name} must be one of {', '.join(allowed)}, got {value!r}")
        least = {"batch_size": 1, "chunk_frames": 1, "denoising_steps": 1, "overlap": 0, "max_gap": 0}
        for name, low in least.items():
            if (value := getattr(self, name)) < low:
                raise ValueError(f"VideoOptions: {name} must be at least {low}, got {value}")
        if self.focal_px is not None and self.fov_deg is not None:
            raise ValueError("VideoOptions: give focal_px or fov_deg, not both")
        if self.focal_px is not None and self.focal_px <= 0:
            raise ValueError(f"VideoOptions: focal_px must be positive, got {self.focal_px}")
        if self.fov_deg is not None and not 0 < self.fov_deg < 180:
            raise ValueError(f"VideoOptions: fov_deg must lie between 0 and 180 degrees, got {self.fov_deg}")
