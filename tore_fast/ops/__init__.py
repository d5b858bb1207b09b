"""The kernels: one stem per op, the same at every floor (see _schema.py for the table)."""

from .. import (
    _ext,  # noqa: F401  (registers the compiled kernels)
    _schema,  # noqa: F401  (schemas before kernels)
)
from ._dispatch import BackendUnavailable
from ._memory import kept_memory, release_memory
from ._sparse import CsrMatrix, MeshTopology, csr_matrix, mesh_topology
from .bipartite_match import MatchPlan, MergedTokens, bipartite_soft_matching, merge, unmerge
from .cluster_merge import ClusterMerge, ClusterMergeTokens, cluster_merge, cluster_merge_tokens
from .density_delta import DensityDelta, density_delta
from .dpc_knn_cluster import DpcClusters, dpc_knn_cluster
from .dpc_knn_cluster_merge import DpcClusterMerge, dpc_knn_cluster_merge
from .fit_landmarks import FitSettings, LandmarkFit, LandmarkModel, fit_landmarks
from .knn_density import knn_density
from .mesh_attention import MeshAttentionResult, mesh_attention
from .mesh_upsample import mesh_upsample
from .ppt_select import gather_tokens, ppt_select
from .pruned_attention import PrunedAttentionResult, pruned_attention, pruned_attention_packed
from .rasterize import Raster, rasterize
from .strassen_linear import StrassenWeight, strassen_linear, strassen_pack
from .token_map import TokenCsr, map2token, token2map, token_csr, token_resample

__all__ = [
    "BackendUnavailable",
    "ClusterMerge",
    "ClusterMergeTokens",
    "CsrMatrix",
    "DensityDelta",
    "DpcClusterMerge",
    "DpcClusters",
    "FitSettings",
    "LandmarkFit",
    "LandmarkModel",
    "MatchPlan",
    "MergedTokens",
    "MeshAttentionResult",
    "MeshTopology",
    "PrunedAttentionResult",
    "Raster",
    "StrassenWeight",
    "TokenCsr",
    "bipartite_soft_matching",
    "cluster_merge",
    "cluster_merge_tokens",
    "csr_matrix",
    "density_delta",
    "dpc_knn_cluster",
    "dpc_knn_cluster_merge",
    "fit_landmarks",
    "gather_tokens",
    "kept_memory",
    "knn_density",
    "map2token",
    "merge",
    "mesh_attention",
    "mesh_topology",
    "mesh_upsample",
    "ppt_select",
    "pruned_attention",
    "pruned_attention_packed",
    "rasterize",
    "release_memory",
    "strassen_linear",
    "strassen_pack",
    "token2map",
    "token_csr",
    "token_resample",
    "unmerge",
]


def op_backends() -> dict[str, tuple[str, ...]]:
    """Op name -> its compiled backends in order of preference (what `impl="auto"` tries before the reference)."""
    import importlib

    stems = (
        "knn_density",
        "density_delta",
        "dpc_knn_cluster",
        "cluster_merge",
        "dpc_knn_cluster_merge",
        "token_map",
        "bipartite_match",
        "mesh_attention",
        "pruned_attention",
        "ppt_select",
        "mesh_upsample",
        "rasterize",
        "strassen_linear",
        "fit_landmarks",
    )
    return {stem: importlib.import_module(f".{stem}", __name__).BACKENDS for stem in stems}
