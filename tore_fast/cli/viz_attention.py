"""`tore-fast viz attention photo.jpg`: where the joints and vertices of an image-to-mesh model look, as PNG files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from . import arguments
from ._options import ModelArgs, OutArgs

DEFAULT_JOINTS = {14: ("Head", "R_Wrist", "L_Wrist", "L_Ankle"), 21: ("Wrist", "Thumb4", "Index4", "Pinky4")}

PANEL_PX = 224  # least side of a tile with the image


@dataclass(kw_only=True)
class Args(ModelArgs, OutArgs):
    """Draws the attention maps of one image: MAP_joints.png (joint by joint), MAP_image.png (joints to image
    cells), MAP_vertices.png (vertex to vertices), MAP_joints_on_mesh.png (how much every vertex attends to a joint),
    MAP_joints_to_vertices.png (the other way round). Which of them there are depends on the tokens of the map."""

    image: Positional[Path]
    """A photograph of one person (or hand)."""
    layer: tuple[str, ...] = ()
    """Maps to draw, e.g. cross_2 (its last layer) or cross_2.1 (its first); default: the last layer of every map."""
    mean: bool = False
    """The mean over all layers of each map, as the papers average (all heads of all modules); cross_1 and cross_2
    together are also averaged (FastMETRO, figure 6)."""
    joints: tuple[str, ...] = ()
    """Joints to draw by name, or `all`; default: four of them."""
    vertices: tuple[int, ...] = ()
    """Coarse vertices to draw by number; default: those nearest to the joints drawn."""
    box: tuple[float, float, float, float] | None = None
    """x0 y0 x1 y1 pixels of the person; default: found by the model (the whole image with random weights)."""
    out: Path = Path("attention")
    """Folder for the PNG files."""
    seed: int = 0
    """Of the random weights, where the model is a registered name."""


def run(args: Args) -> int:
    from ..vis.attention_maps import require_matplotlib

    with arguments():
        require_matplotlib()
        written = _draw(args)
    args.say({"images": [str(p) for p in written]}, "\n".join(map(str, written)))
    return 0


def _draw(args: Args) -> list[Path]:
    import inspect

    import numpy as np
    import torch

    from ..geometry.warp import IMAGENET_MEAN, IMAGENET_STD, model_input
    from ..pipelines.images import ImagePipeline
    from ..vis.overlay import save_png

    random = args.is_random()
    torch.manual_seed(args.seed)
    model = args.network()
    if "return_attention" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"{args.checkpoint or f'--model {args.model}'} returns no attention maps; expected fastmetro*, "
            "*tore*, metro* or graphormer*"
        )
    if random:
        print("note: random weights: the maps are those of an untrained model", file=sys.stderr)
    pipeline = ImagePipeline(model, mesh_data=args.mesh_data, device="cpu")
    boxes = [[args.box]] if args.box else ("full" if random else "auto")
    result = pipeline.predict([args.image], boxes)[0]
    if result.error:
        raise ValueError(result.error)
    person = result.people[0]
    seen_by: Any = pipeline.body_model
    assert result.pixels is not None
    crop = model_input(result.pixels, person.crop, seen_by.image_size)
    with torch.inference_mode():
        out = model(crop[None], return_attention=True, fine=False)
    photo = ((crop.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN) * 255).round().clip(0, 255).astype(np.uint8)
    scene = _Scene(args, model, pipeline, person, photo, out, random)
    maps = {n: m[:, 0].float().numpy() for n, m in out.attention.items()}  # name -> [layers, queries, keys]
    if args.mean:
        maps = _means(maps)
    chosen = _layers(args.layer, maps)
    args.out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, index in chosen:
        label = f"{name}_mean" if args.mean else f"{name}.{index + 1}"
        images = scene.images(name, maps[name][index])
        if not images and args.layer:
            print(f"note: {label} has neither joints nor vertices as queries: nothing drawn", file=sys.stderr)
        for kind, canvas in images.items():
            path = args.out / f"{label}_{kind}.png"
            if kind == "joints":
                scene.table(canvas, path, label)
            else:
                save_png(canvas, path)
            written.append(path)
    return written


def _layers(wanted: tuple[str, ...], maps: dict) -> list[tuple[str, int]]:
    """(map, 0-based layer) pairs from names like cross_2 and cross_2.1."""
    chosen = []
    for text in wanted or tuple(maps):
        name, _, number = text.partition(".")
        count = len(maps[name]) if name in maps else 0
        if not count or (number and not (number.isdigit() and 1 <= int(number) <= count)):
            have = ", ".join(f"{n}.1" if len(m) == 1 else f"{n}.1-{len(m)}" for n, m in maps.items())
            raise ValueError(f"--layer: no attention map {text!r}; this model has {have}")
        chosen.append((name, int(number or count) - 1))
    return chosen


def _means(maps: dict) -> dict:
    """Maps [1, queries, keys], each the mean over its layers; "cross" is that of the transformers of equal tokens."""
    out = {name: m.mean(0, keepdims=True) for name, m in maps.items()}
    both = [m for name, m in maps.items() if name in ("cross_1", "cross_2")]
    if len(both) == 2 and both[0].shape[1:] == both[1].shape[1:]:
        import numpy as np

        out["cross"] = np.concatenate(both).mean(0, keepdims=True)
    return out


class _Scene:
    """What the images of all maps share: the crop, the mesh they are painted on, the chosen joints and vertices."""

    def __init__(self, args: Args, model: Any, pipeline: Any, person: Any, photo: Any, out: Any, random: bool) -> None:
        import numpy as np
        from PIL import Image

        if len(photo) < PANEL_PX:  # enlarged before drawing, so that labels fit and rings are smooth
            photo = np.asarray(Image.fromarray(photo).resize((PANEL_PX, PANEL_PX), Image.Resampling.BICUBIC))
        self.photo = photo
        self.names, self.grid = pipeline.joint_names, tuple(model.config.grid)
        self.heatmap = None if out.heatmap is None else out.heatmap[0].float().numpy()
        self.counts = (out.joints.shape[1], out.vertices_coarse.shape[1])
        if len(self.names) != self.counts[0]:  # a model with joints of its own
            self.names = tuple(f"joint{i}" for i in range(self.counts[0]))
        self.faces = pipeline.topology.hierarchy.faces[-1]
        rest = model.mesh.template_vertices
        if random and rest is not None:  # what an untrained model regresses is no body
            self.mesh, self.points = rest, model.mesh.template_joints
        else:
            self.mesh, self.points = person.vertices_coarse, person.joints_3d
        half = photo.shape[0] / 2
        self.joints_px = None
        if not random:
            camera = person.camera
            self.joints_px = (camera[0] * (person.joints_3d[:, :2] + camera[1:]) + 1) * half
        self.joints = self._joints(args.joints)
        self.vertices = list(args.vertices)
        for v in self.vertices:
            if not 0 <= v < self.counts[1]:
                raise ValueError(f"--vertices: the coarse mesh has vertices 0..{self.counts[1] - 1}, got {v}")
        if not self.vertices:
            near = [int(np.linalg.norm(self.mesh - self.points[j], axis=1).argmin()) for j in self.joints]
            self.vertices = list(dict.fromkeys(near))

    def _joints(self, wanted: tuple[str, ...]) -> list[int]:
        if wanted == ("all",):
            return list(range(len(self.names)))
        wanted = (
            wanted or tuple(n for n in DEFAULT_JOINTS.get(len(self.names), ()) if n in self.names) or self.names[:4]
        )
        for name in wanted:
            if name not in self.names:
                raise ValueError(f"--joints: no joint {name!r}; expected all or some of {', '.join(self.names)}")
        return [self.names.index(name) for name in wanted]

    def images(self, name: str, weights: Any) -> dict:
        """Images of one map [queries, keys] by kind; under "joints" the bare joint matrix."""
        from ..vis.attention_maps import map_layout, on_mesh, over_image, sheet, to_cells

        cells = self.grid[0] * self.grid[1]
        tokens = cells if self.heatmap is None else self.heatmap.shape[0]
        rows, cols = map_layout(name, weights.shape, *self.counts, tokens)
        found = {}
        if "joint" in rows and "joint" in cols:
            found["joints"] = weights[rows["joint"], cols["joint"]]
        if "joint" in rows and "image" in cols:
            seen = to_cells(weights[rows["joint"], cols["image"]], self.heatmap)
            tiles = [(self.photo, "crop")]
            for j in self.joints:
                point = None if self.joints_px is None else self.joints_px[j]
                tiles.append((over_image(self.photo, seen[j], self.grid, point), self._label(self.names[j], seen[j])))
            found["image"] = sheet(tiles, columns=5)
        if "vertex" in rows and "vertex" in cols:
            block = weights[rows["vertex"], cols["vertex"]]
            tiles = [
                (on_mesh(self.mesh, self.faces, block[v], marked=v), self._label(f"vertex {v} (red)", block[v]))
                for v in self.vertices
            ]
            found["vertices"] = sheet(tiles, columns=2)
        for query, key, text in (("vertex", "joint", "vertices to {}"), ("joint", "vertex", "{} to vertices")):
            if query not in rows or key not in cols:
                continue
            block = weights[rows[query], cols[key]]
            block = block.T if query == "vertex" else block  # [J, V]
            kind = "joints_on_mesh" if query == "vertex" else "joints_to_vertices"
            tiles = [
                (on_mesh(self.mesh, self.faces, block[j]), self._label(text.format(self.names[j]), block[j]))
                for j in self.joints
            ]
            found[kind] = sheet(tiles, columns=2)
        return found

    def table(self, matrix: Any, path: Path, label: str) -> None:
        from ..vis.attention_maps import save_table

        save_table(matrix, self.names, path, f"{label}: attention among joints")

    @staticmethod
    def _label(text: str, values: Any) -> str:
        return f"{text}: max {values.max():.3f}"
