"""How videos run: dataclasses that the command line and Python share."""

from __future__ import annotations

from dataclasses import dataclass

from .._device import check_precision

BOX_RULES = ("hmr2", "tight")  # of geometry/crop.py: those of HMR2.0 and CameraHMR
MASK_SOURCES = ("auto", "ellipse", "none")


def _check(options: object, words: dict[str, tuple[str, ...]], least: dict[str, int]) -> None:
    for name, allowed in words.items():
        if (value := getattr(options, name)) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name, low in least.items():
        if (value := getattr(options, name)) < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")


@dataclass(kw_only=True)
class DecodeOptions:
    """From per-frame predictions of a track to its motion."""

    chunk_frames: int = 64
    """Frames between two saved states: what a crash can cost."""
    overlap: int = 0
    """Frames shared by neighbouring clips of the motion decoder (27 hides seams)."""
    max_gap: int = 15
    """Frames without a box that are interpolated; a longer gap cuts the track."""
    noise: str = "seeded"
    """Start of the motion decoder's denoiser: seeded or zeros."""
    denoising_steps: int = 1
    """Calls of the denoiser per clip; the paper uses one. One that was trained for the last timestep (--loss.last-step
    1)
    knows only 1."""
    ik_mode: str = "adaptive"
    """Inverse kinematics after the motion decoder: adaptive, or naive (bones as predicted)."""
    betas_mode: str = "median"
    """Shape: median over the track, or per_frame."""

    def __post_init__(self) -> None:
        words: dict[str, tuple[str, ...]] = {
            "noise": ("seeded", "zeros"),
            "ik_mode": ("adaptive", "naive"),
            "betas_mode": ("median", "per_frame"),
        }
        _check(self, words, {"chunk_frames": 1, "denoising_steps": 1, "overlap": 0, "max_gap": 0})


@dataclass(kw_only=True)
class VideoOptions(DecodeOptions):
    """How a VideoPipeline runs."""

    batch_size: int = 32  # crops per call of the model
    box_rule: str = "hmr2"  # or tight (CameraHMR's demo)
    masks: str = "auto"  # ellipse | none | auto: given masks, else none
    focal_px: float | None = None
    fov_deg: float | None = None  # vertical
    principal_px: tuple[float, float] | None = None  # default: the image's centre
    seed: int = 0
    precision: str = "fp32"  # or bf16, fp16 (autocast of the networks)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, {"masks": MASK_SOURCES, "box_rule": BOX_RULES}, {"batch_size": 1})
        check_precision(self.precision)
        check_camera(self.focal_px, self.fov_deg)


def check_camera(focal_px: float | None, fov_deg: float | None) -> None:
    """ValueError for a focal length or field of view that no camera has, or both at once."""
    if focal_px is not None and fov_deg is not None:
        raise ValueError("give focal_px or fov_deg, not both")
    if focal_px is not None and not 0 < focal_px < float("inf"):
        raise ValueError(f"focal_px must be positive, got {focal_px}")
    if fov_deg is not None and not 0 < fov_deg < 180:
        raise ValueError(f"fov_deg must lie between 0 and 180 degrees, got {fov_deg}")
