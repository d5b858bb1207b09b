"""`tore-fast demo`: the main job on an embedded photograph with the embedded weights, nothing downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import arguments
from ._options import OutArgs


@dataclass(kw_only=True)
class Args(OutArgs):
    """Fits a body to the person of the built-in photograph. Says where the results are and how far to trust them."""

    out: Path = Path("tore_fast_demo")
    """Folder for the results."""
    device: str = "auto"
    """auto, cpu, cuda ..."""


def run(args: Args) -> int:
    import numpy as np
    import torch

    from ..geometry.procrustes import similarity_align
    from ..io.atomic import replacing
    from ..pipelines.demo_image import ASSETS, PORTRAIT_SOURCE, demo_image
    from ..pipelines.photographs import PhotographPipeline
    from ..pipelines.results import sheet, write_result
    from ..vis.overlay import save_png

    with arguments():
        pipeline = PhotographPipeline(device=args.device)
    rendered, truth = demo_image()
    result, known = pipeline.predict([ASSETS / "portrait.jpg", rendered])
    files = write_result(result, pipeline, args.out, "demo", ("png", "glb", "obj", "npz"))
    person = result.people[0]
    with replacing(args.out / "demo_sheet.png") as part:
        save_png(sheet(result, pipeline), part)
    files.insert(0, args.out / "demo_sheet.png")
    got, want = (torch.from_numpy(np.asarray(v))[None] for v in (known.people[0].vertices, truth.vertices))
    error = 1000 * float((similarity_align(got, want) - want).norm(dim=-1).mean())
    assert person.visibility is not None  # as of every body fitted to landmarks
    seen = int((person.visibility >= 0.5).sum())
    lines = [
        f"The built-in photograph, a {PORTRAIT_SOURCE},",
        f"gave {len(result.people)} person: {person.score:.2f} sure, {seen} of 33 landmarks seen, the body "
        + ("is believed:" if person.believed else f"is not believed ({person.reason}):"),
        *(f"  {path}" for path in files),
        "demo_sheet.png: photograph, landmarks (grey: guessed), body, the body from the side. "
        "What lies outside the image, here the legs, is guessed.",
        *(f"note: {note}" for note in result.notes),
        f"On a built-in render whose truth is known, vertices are off by {error:.0f} mm after alignment.",
        "Depth is the weak point: from the side a body may lean, and size is an adult's. "
        "Not for measuring or identifying people.",
        "Your own images: tore-fast predict photo.jpg --out out/",
    ]
    facts = {
        "files": [str(f) for f in files],
        "people": len(result.people),
        "vertices": len(person.vertices),
        "score": person.score,
        "believed": person.believed,
        "landmarks_seen": seen,
        "notes": list(result.notes),
        "rendered_pa_mpvpe_mm": error,
    }
    args.say(facts, "\n".join(lines))
    return 0
