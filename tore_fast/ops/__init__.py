"""The kernels: one stem per op, the same at every floor (see ops/_schema.py for the table)."""

from .. import _ext  # noqa: F401  (registers the compiled kernels)
from . import _schema  # noqa: F401  (schemas before kernels)
from ._dispatch import BackendUnavailable
from ._sparse import CsrMatrix, MeshTopology, csr_matrix, mesh_topology
from .mesh_upsample import mesh_upsample
from .rasterize import Raster, rasterize

__all__ = [
    "BackendUnavailable",
    "CsrMatrix",
    "MeshTopology",
    "Raster",
    "csr_matrix",
    "mesh_topology",
    "mesh_upsample",
    "rasterize",
]


def op_backends() -> dict[str, tuple[str, ...]]:
    """Op name -> its compiled backends in order of preference (what `impl="auto"` tries before the reference)."""
    import importlib

    stems = ("mesh_upsample", "rasterize")
    return {stem: importlib.import_module(f".{stem}", __name__).BACKENDS for stem in stems}
