"""`tore-fast viz stages base.npz merged.npz ...`: the joints of one clip from several runs, side by side (figure 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from . import arguments
from ._options import OutArgs


@dataclass(kw_only=True)
class Args(OutArgs):
    """Draws stages.png: a row per frame, a column per result file, all from the same frames of the same clip."""

    results: Positional[tuple[Path, ...]]
    """Results of `predict` or files with joints_3d [N, 24, 3], e.g. of the base model, after ECLM, Mask-ToMe, and with
    the motion decoder."""
    names: tuple[str, ...] = ()
    """Titles of the columns; default: the files' names."""
    frames: tuple[int, ...] = ()
    """Rows of the files to draw; default: five, spread evenly."""


def run(args: Args) -> int:
    import numpy as np

    from ..io.safe_pickle import read_npz
    from ..vis.attention_maps import sheet
    from ..vis.frames import skeleton_figure
    from ..vis.overlay import save_png

    with arguments():
        if not args.results:
            raise ValueError("RESULTS: give result files with joints_3d, a column each")
        names = args.names or tuple(p.stem for p in args.results)
        if len(names) != len(args.results):
            raise ValueError(f"--names: expected {len(args.results)} titles, got {len(names)}")
        clips = []
        for path in args.results:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
            joints = np.asarray(read_npz(path, ["joints_3d"])["joints_3d"], np.float64)
            if joints.ndim != 3 or joints.shape[1] < 24 or joints.shape[2] != 3:
                raise ValueError(f"{path}: joints_3d must be [N, 24, 3], got {list(joints.shape)}")
            clips.append(joints[:, :24] - joints[:, :1])
        length = min(map(len, clips))
        frames = args.frames or tuple(np.linspace(0, length - 1, min(5, length)).round().astype(int).tolist())
        if not frames or not all(0 <= f < length for f in frames):
            raise ValueError(f"--frames: expected some of 0..{length - 1}, got {frames}")
        reach = float(max(np.abs(c[list(frames)]).max() for c in clips)) or 1.0
        tiles = [
            (skeleton_figure(clip[f], 200, reach), f"{name}, frame {f}")
            for f in frames
            for name, clip in zip(names, clips)
        ]
        canvas = sheet(tiles, columns=len(clips))
    with args.folder() as folder:
        save_png(canvas, folder / "stages.png")
    args.say({"image": str(args.out / "stages.png"), "frames": [*frames]}, str(args.out / "stages.png"))
    return 0
