"""The kernels: one stem per op, the same at every floor (see ops/_schema.py for the table)."""

from .. import _ext  # noqa: F401  (registers the compiled kernels)
from . import _schema  # noqa: F401  (schemas before kernels)
from ._dispatch import BackendUnavailable
from ._sparse import CsrMatrix, MeshTopology, csr_matrix, mesh_topology
from .bipartite_match import MatchPlan, MergedTokens, bipartite_soft_matching, merge, unmerge
from .mesh_attention import MeshAttentionResult, mesh_attention
from .mesh_upsample import mesh_upsample
from .ppt_select import gather_tokens, ppt_select
from .pruned_attention import PrunedAttentionResult, pruned_attention, pruned_attention_packed

__all__ = [
    "BackendUnavailable",
    "CsrMatrix",
    "MatchPlan",
    "MergedTokens",
    "MeshAttentionResult",
    "MeshTopology",
    "PrunedAttentionResult",
    "bipartite_soft_matching",
    "csr_matrix",
    "gather_tokens",
    "merge",
    "mesh_attention",
    "mesh_topology",
    "mesh_upsample",
    "ppt_select",
    "pruned_attention",
    "pruned_attention_packed",
    "unmerge",
]


def op_backends() -> dict[str, tuple[str, ...]]:
    """Op name -> its compiled backends in order of preference (what `impl="auto"` tries before the reference)."""
    import importlib

    stems = ("mesh_upsample", "mesh_attention", "pruned_attention", "bipartite_match", "ppt_select")
    return {stem: importlib.import_module(f".{stem}", __name__).BACKENDS for stem in stems}
