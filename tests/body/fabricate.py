"""Makes files that look like the official ones, with random contents: chumpy pickles and model dictionaries."""

from __future__ import annotations

import pickle
import sys
import types
from contextlib import contextmanager

import numpy as np
import scipy.sparse as sp


@contextmanager
def fake_chumpy():
    """While open, `chumpy.ch.Ch` and `chumpy.reordering.Select` can be pickled; afterwards they do not exist."""
    made = {}
    for name, cls in (("ch", "Ch"), ("reordering", "Select")):
        module = types.ModuleType(f"chumpy.{name}")
        made[cls] = type(cls, (), {"__module__": f"chumpy.{name}"})
        setattr(module, cls, made[cls])
        sys.modules[f"chumpy.{name}"] = module
    sys.modules["chumpy"] = types.ModuleType("chumpy")
    try:
        yield types.SimpleNamespace(**made)
    finally:
        for name in ("chumpy", "chumpy.ch", "chumpy.reordering"):
            sys.modules.pop(name)


def chumpy_array(ch, x: np.ndarray):
    out = ch.Ch()
    out.__dict__.update(x=x, _dirty_vars={"x"}, _parents={}, want_output=True)
    return out


def model_fields(name: str, rng: np.random.Generator) -> dict:
    """Fields of a SMPL or MANO file with random numbers (topology of the shipped bodies, so nothing licensed)."""
    from tore_fast.body import load_body
    from tore_fast.geometry.skeleton import MANO16, SMPL24

    free = load_body({"smpl": "free", "mano": "free_hand"}[name])
    count, bones = len(free.template), free.num_joints
    parents = np.array(SMPL24.parents if name == "smpl" else MANO16.parents)
    fields = {
        "v_template": free.template.double().numpy(),
        "shapedirs": 0.01 * rng.normal(size=(count, 3, 12)),
        "posedirs": 1e-3 * rng.normal(size=(count, 3, 9 * (bones - 1))),
        "J_regressor": sp.csc_matrix(free.topology.regressor("smpl24" if name == "smpl" else "mano16")),
        "weights": free.weights.double().numpy(),
        "kintree_table": np.stack([np.where(parents < 0, 2**32 - 1, parents), np.arange(bones)]).astype(np.uint32),
        "f": free.faces().astype(np.uint32),
    }
    return fields if name == "smpl" else fields | {"hands_mean": 0.2 * rng.normal(size=45)}


def write_pickle(path, fields: dict, protocol: int, wrap=("v_template", "shapedirs", "posedirs", "weights")) -> None:
    with fake_chumpy() as ch:
        data = {k: chumpy_array(ch, v) if k in wrap else v for k, v in fields.items()}
        path.write_bytes(pickle.dumps(data | {"bs_style": "lbs"}, protocol=protocol))
