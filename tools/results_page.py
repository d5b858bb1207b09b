"""Writes docs/results.md from the table of result keys (tore_fast/pipelines/results.py).

python tools/results_page.py            # writes the page
python tools/results_page.py --check    # 1 if the page is not what the table says
"""

from __future__ import annotations

import sys
from pathlib import Path

from tore_fast.pipelines.results import AXES, KEYS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
VERBS = {"p": "images", "v": "videos", "b": "batch", "l": "lift"}
HEAD = f"""# What the results hold

Made by `tools/results_page.py` from the table in `tore_fast/pipelines/results.py`.

`predict` writes an npz (and with `--format json` the same without meshes as json) for each image, and one for each tracked person
of a video; `batch` one for each unit of images; `lift` one for each clip. The same thing has the same name everywhere.
`OUT/results.json` lists what was made: for each input its `source`, the `name` of its results, `files`, `people`, or the `error`.

{AXES}

N: people (images, batch) or frames (videos, lift). I: images of a unit. J: joints. V, F: vertices and faces of the mesh.

| key | images | videos | batch | lift | shape | unit | meaning |
|---|---|---|---|---|---|---|---|
"""
TAIL = """
GLB files keep `source`, `box`, `focal_px` and `trans` of the person in the scene's `extras`. `NAME_scene.glb` holds all people of an
image in front of its camera. OBJ and PLY hold the mesh alone.

Names: the stem of the input; where that would meet another result, stem_suffix (`a.jpg a.png` give `a` and `a_png`), then numbers.
An input keeps its name when it is run again into the same folder, and no other input gets it.
"""


def page() -> str:
    """The whole page."""
    rows = []
    for key in KEYS:
        marks = " | ".join(("some" if key.optional else "yes") if v in key.where else "" for v in VERBS)
        meaning = key.meaning + (f" ({key.optional})" if key.optional else "")
        rows.append(f"| `{key.name}` | {marks} | {key.shape or 'single'} | {key.unit} | {meaning} |")
    return HEAD + "\n".join(rows) + "\n" + TAIL


def main() -> int:
    if "--check" in sys.argv[1:]:
        same = PAGE.is_file() and PAGE.read_text() == page()
        print("docs/results.md is up to date" if same else "docs/results.md is stale: run tools/results_page.py")
        return 0 if same else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
