"""Mesh structures inside a module: sparse up-sampling and attention patterns as buffers that are not saved.

They follow `.to(device)` but keep float32 values under `.half()`, because up-sampling weights reach -2.5..3.4 and
16-bit storage of them is visible on the mesh. They are rebuilt from the mesh, so checkpoints keep the official keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import CsrMatrix, MeshTopology, mesh_upsample


class _Static(nn.Module):
    """Non-persistent buffers under the field names of a NamedTuple; dtype casts leave them alone."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        for name, t in tensors.items():
            self.register_buffer(name, t, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A view as integers makes `.half()`/`.double()` skip the values while `.to(device)` still moves them.
        for name, t in self._buffers.items():
            assert t is not None
            moved = fn(t.view(torch.int32))
            self._buffers[name] = moved.view(t.dtype)
        return self


class MeshUpsample(_Static):
    """y = U x for vertices [B, C, 3] with a fixed sparse U [R, C] (ops.mesh_upsample)."""

    def __init__(self, matrix: CsrMatrix):
        super().__init__(matrix._asdict())

    @property
    def matrix(self) -> CsrMatrix:
        return CsrMatrix(*(getattr(self, name) for name in CsrMatrix._fields))

    def forward(self, x: Tensor) -> Tensor:  # [B, C, F] -> [B, R, F]
        return mesh_upsample(x, self.matrix)


class MeshPattern(_Static):
    """Holds a MeshTopology: which tokens attend to which."""

    def __init__(self, topology: MeshTopology):
        super().__init__(topology.tensors())
        self.joints = topology.joints

    def forward(self) -> MeshTopology:
        return MeshTopology(joints=self.joints, **self._buffers)  # type: ignore[arg-type]
