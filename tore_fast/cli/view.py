"""`tore-fast view OUT`: results of predict and lift in the browser, or as one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from . import UsageError, arguments


@dataclass(kw_only=True)
class Args:
    """Shows results of predict (images, videos) and lift in the browser: bodies at their places in front of the
    photograph, several people, a frame slider, skeleton or mesh, joint names, the photograph's camera, downloads.

    The server (extra `viewer`) is reached from this machine alone. Over SSH: ssh -L 8080:localhost:8080 HOST. Ctrl-C
    ends it.
    --html needs no server and no extra.
    """

    out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")] = Path("out")
    """Folder that predict or lift wrote, its results.json, or one npz or glb file."""
    html: Path | None = None
    """Write one HTML page instead (several results: pages FILE_NAME.html). It opens from disk and needs no network."""
    body: str | None = None
    """SMPL model file, for videos whose parameters belong to it; default: the body that the file names."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8080
    """Port; where it is busy, the next free one."""
    seconds: float | None = None
    """End after so many seconds; default: with Ctrl-C."""


def run(args: Args) -> int:
    from ..pipelines.scenes import read_scenes

    with arguments():
        scenes = read_scenes(args.out, args.body)
    if args.html is not None:
        from ..vis.page import write_page

        shown = [s for s in scenes if s.people]
        if not shown:
            raise UsageError(f"{args.out}: nobody was found, there is nothing to show")
        for scene in shown:
            path = args.html if len(shown) == 1 else args.html.with_name(f"{args.html.stem}_{scene.title}.html")
            with arguments("--html"):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_page(path, scene)
            print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
        return 0
    from ..vis.viewer import Viewer

    with arguments():
        viewer = Viewer(scenes, args.host, args.port)
    print(f"{len(scenes)} results at {viewer.address} (Ctrl-C ends)", flush=True)
    viewer.run(args.seconds)
    return 0
