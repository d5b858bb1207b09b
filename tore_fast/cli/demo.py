"""`tore-fast demo`: the main job on an embedded image with the embedded weights, nothing downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import arguments
from ._options import OutArgs


@dataclass(kw_only=True)
class Args(OutArgs):
    """Runs the built-in model on the built-in image and says where the results are and how far to trust them."""

    out: Path = Path("tore_fast_demo")
    """Folder for the results."""
    device: str = "auto"
    """auto, cpu, cuda ..."""


def run(args: Args) -> int:
    import numpy as np
    import torch

    from ..geometry.procrustes import similarity_align
    from ..models._checkpoint import read_config
    from ..models.default import default_folder
    from ..pipelines.demo_image import demo_image
    from ..pipelines.images import ImagePipeline
    from ..pipelines.results import write_result

    with arguments():
        card = read_config(default_folder())
        pipeline = ImagePipeline(device=args.device)
    image, truth = demo_image()
    result = pipeline.predict([image], [[truth.box]])[0]
    files = write_result(result, pipeline, args.out, "demo", ("png", "glb", "obj", "npz"))
    person = result.people[0]
    joints = torch.from_numpy(person.joints_3d)[None]
    want = torch.from_numpy(truth.joints_3d)[None]
    error = 1000 * float((joints - want).norm(dim=-1).mean())
    aligned = 1000 * float((similarity_align(joints, want) - want).norm(dim=-1).mean())
    m = card["metrics"]["hard"]
    trust = card.get("trust", "Trained on synthetic images only: expect rough meshes on real photographs.")
    lines = [
        "A synthetic image of the free body (its truth is known) went through the built-in model:",
        *(f"  {path}" for path in files),
        f"mesh: {len(person.vertices):,} vertices, height {np.ptp(person.vertices[:, 1]):.2f} m as posed",
        f"error on this image: {error:.0f} mm per joint (pelvis at the origin), {aligned:.0f} mm after alignment",
        f"held-out synthetic images: MPJPE {m['mpjpe_mm']:.0f} mm (constant mean: {m['constant_mean_mpjpe_mm']:.0f}), "
        f"PA-MPJPE {m['pa_mpjpe_mm']:.0f} mm (mean pose: {m['mean_pose_pa_mpjpe_mm']:.0f})",
        trust,
        "Your own images: tore-fast predict photo.jpg --out out/",
    ]
    facts = {
        "files": [str(f) for f in files],
        "vertices": len(person.vertices),
        "mpjpe_mm": error,
        "pa_mpjpe_mm": aligned,
    }
    args.say({**facts, "held_out": m, "trust": trust}, "\n".join(lines))
    return 0
