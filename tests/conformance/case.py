"""One golden case: a `NAME.json` (model, config, key shapes, inputs, notes) beside a `NAME.npz` (stored arrays)."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import recipe


class SkipCase(Exception):
    """The case cannot run here; the text says why."""


class Arrays(dict):
    """Stored arrays; `read` holds the names somebody looked at."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        super().__init__(arrays)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default=None):
        return self[name] if name in self else default


@dataclass(frozen=True)
class Case:
    path: Path
    mesh_data: Path | None = None

    @functools.cached_property
    def meta(self) -> dict:
        return json.loads(self.path.read_text())

    @property
    def model(self) -> str:
        return str(self.meta.get("model") or "")

    @property
    def config(self) -> dict:
        return self.meta.get("config") or {}

    @property
    def notes(self) -> str:
        notes = self.meta.get("notes") or ""
        return notes if isinstance(notes, str) else json.dumps(notes)

    @functools.cached_property
    def arrays(self) -> Arrays:
        npz = self.path.with_suffix(".npz")
        if not npz.exists():
            return Arrays({})
        with np.load(npz, allow_pickle=False) as data:
            return Arrays({k: data[k] for k in data.files})

    def stored(self, name: str) -> torch.Tensor:
        if name not in self.arrays:
            raise KeyError(f"{self.path.name}: no stored array {name!r}; it has {sorted(self.arrays)}")
        return torch.from_numpy(self.arrays[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Recipe weights for every key of the case; stored BatchNorm statistics overwrite them where given."""
        shapes: dict[str, list[int]] = self.meta.get("state_dict") or {}
        state = {k: recipe.weight(k, s) for k, s in shapes.items()}
        for suffix in ("running_mean", "running_var"):
            flat = self.arrays.get(f"bn_{suffix}")
            if flat is None:
                continue
            start = 0
            for k in (k for k in shapes if k.endswith(suffix)):
                n = int(np.prod(shapes[k]))
                state[k] = flat[start : start + n].reshape(shapes[k]).astype(np.float32)
                start += n
            if start != flat.size:
                raise ValueError(f"{self.path.name}: bn_{suffix} has {flat.size} numbers, its keys need {start}")
        return {k: torch.from_numpy(np.array(v)) for k, v in state.items()}

    def array(self, name: str) -> np.ndarray:
        """Input `name` (with or without the prefix 'input.'), stored or made by its recipe."""
        inputs = self.meta.get("inputs") or {}
        key = name if name in inputs else f"input.{name}"
        if key not in inputs:
            raise KeyError(f"{self.path.name}: no input {name!r}; it has {sorted(inputs)}")
        for stored in (key, key.removeprefix("input.")):
            if stored in self.arrays:
                return self.arrays[stored]
        spec = inputs[key]
        text, shape = (spec["recipe"], spec.get("shape")) if isinstance(spec, dict) else (spec, None)
        return np.asarray(recipe.evaluate(text, shape))

    def input(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.array(name)))

    def mesh_file(self, name: str) -> Path:
        if self.mesh_data is None or not (self.mesh_data / name).exists():
            raise SkipCase(f"needs {name} (licence-bound mesh topology): pass --mesh-data DIR")
        return self.mesh_data / name

    def close(self, name: str, got: torch.Tensor, atol: float, rtol: float = 0.0) -> None:
        """Compares `got` with the stored array `name`."""
        want = self.arrays[name]
        got = got.detach().cpu().numpy()
        if got.shape != want.shape:
            raise AssertionError(f"{self.path.name}: {name} has shape {got.shape}, expected {want.shape}")
        np.testing.assert_allclose(got, want, atol=atol, rtol=rtol, err_msg=f"{self.path.name}: {name}")
