"""The study's data: features of the built-in model's frozen trunk for synthetic images, computed once and kept in
chunks.

In: a Protocol (.rows.py); out: dicts of tensors (features, labels) that every row trains and is evaluated on. Chunks
are files of one generator batch each, written atomically, so a stopped computation goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tore_fast.body import Body
from tore_fast.body.decimate import decimate
from tore_fast.body.fit_upsampling import fit_upsampling
from tore_fast.data.synth import HELD_OUT, SynthGenerator
from tore_fast.geometry.warp import normalise_image
from tore_fast.io.weights import read_weights
from tore_fast.models import load
from tore_fast.models.default import default_folder
from tore_fast.train.checkpoint import save_atomically

from .rows import Protocol

CHUNK = 256  # images of a training chunk
LABELS = ("pose", "betas", "joints3d", "joints2d", "camera")


def frozen_trunk() -> nn.Module:
    """The trunk of the shipped `tore_default`: [B, 3, 112, 112] normalised -> [B, 208, 7, 7]."""
    return load(default_folder()).backbone.eval().requires_grad_(False)


def load_or_make(
    protocol: Protocol, body, folder: Path, split: str, log: Callable[[str], None] = print
) -> dict[str, Tensor]:
    """The images of `split` ("train", "easy", "hard") as float16 features [N, 208, 7, 7] and labels, vertices at level
    2.

    Files are named after everything that decides their content, so another protocol never reads them.
    """
    p = protocol
    if split == "train":
        seed, difficulty, count, size, source = p.data_seed, p.difficulty, p.images, CHUNK, "train"
    else:
        held = HELD_OUT[split]
        seed, difficulty, size, source = held.seed, held.difficulty, held.batch_size, "test"
        count = min(p.eval_images // (2 if split == "hard" else 1), held.batches * held.batch_size)
    size = min(size, count)
    folder.mkdir(parents=True, exist_ok=True)
    trunk = generator = None
    chunks = []
    for index in range(-(-count // size)):
        path = folder / f"{source}_{p.image_size}px_seed{seed}_d{difficulty}_b{size}_{index:04d}.pt"
        if not path.exists():
            if generator is None:
                trunk = frozen_trunk().to(memory_format=torch.channels_last)
                generator = SynthGenerator(body, p.image_size, seed, difficulty, split=source)
            save_atomically(_chunk(trunk, generator, index, size), path)
            log(f"{path.name}")
        chunks.append(read_weights(path))
    return {k: torch.cat([c[k] for c in chunks])[:count] for k in chunks[0]}


@torch.inference_mode()
def _chunk(trunk: nn.Module, generator: SynthGenerator, index: int, size: int) -> dict[str, Tensor]:
    made = generator.batch(index, size)
    images = normalise_image(made["images"]).contiguous(memory_format=torch.channels_last)
    features = torch.cat([trunk(part) for part in images.split(32)]).contiguous()
    kept = {
        "features": features.half(),
        "coarse": generator.body.coarse(made["vertices"], 2),
        **{k: made[k] for k in LABELS},
    }
    return {k: v.clone() for k, v in kept.items()}  # clone: a view would save its whole storage


def study_body(body: Body, vertices: int, samples: Tensor) -> Body:
    """`body` with one more, coarser level of `vertices` points: its vertices are the tokens of every row.

    Args:
        samples: [S, 431, 3] posed coarse bodies, to fit the up-sampling to.
    """
    h = body.hierarchy
    top = h.num_levels - 1
    rest = body.template.double().numpy()[h.vertex_index(top)]
    if vertices == len(rest):
        return body
    ((kept, faces),) = decimate(rest, h.faces[top], [vertices])
    up = fit_upsampling(rest, h.faces[top], kept, samples.double().numpy(), ridge=1e-3)
    hierarchy = dataclasses.replace(
        h, faces=(*h.faces, faces), picks=(*h.picks, kept.astype(np.int32)), ups=(*h.ups, up)
    )
    parts = ("template", "shape_dirs", "weights", "joints", "joint_dirs", "joint_names", "parents", "part_names")
    return Body(
        dataclasses.replace(body.topology, hierarchy=hierarchy),
        parts=body.part_labels,
        **{k: getattr(body, k) for k in parts},
    )
