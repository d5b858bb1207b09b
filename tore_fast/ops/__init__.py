"""The kernels: one stem per op, the same at every floor (schemas: ../_schema.py).

A module without underscore is an op; what is imported here is public.
"""

import importlib
import pkgutil

from .. import (
    _ext,  # noqa: F401  (registers the compiled kernels)
    _schema,  # noqa: F401  (schemas before kernels)
)
from ._dispatch import BackendUnavailable, use
from ._fit_args import FitSettings, LandmarkModel
from ._memory import kept_memory, release_memory
from ._sparse import CsrMatrix, MeshTopology, csr_matrix, mesh_topology
from .bipartite_match import MatchPlan, MergedTokens, bipartite_soft_matching, merge, unmerge
from .cluster_merge import ClusterMerge, ClusterMergeTokens, cluster_merge, cluster_merge_tokens
from .density_delta import DensityDelta, density_delta
from .dpc_knn_cluster import DpcClusters, dpc_knn_cluster
from .dpc_knn_cluster_merge import DpcClusterMerge, dpc_knn_cluster_merge
from .fit_landmarks import LandmarkFit, fit_landmarks
from .knn_density import knn_density
from .linear import Norm, PackedWeight, linear
from .mesh_attention import MeshAttentionResult, mesh_attention
from .mesh_upsample import mesh_upsample
from .ppt_select import gather_tokens, ppt_select
from .pruned_attention import PrunedAttentionResult, plain_attention, pruned_attention, pruned_attention_packed
from .rasterize import Raster, rasterize
from .token_map import TokenCsr, map2token, token2map, token_csr, token_resample

__all__ = sorted(n for n, v in globals().items() if getattr(v, "__module__", "").startswith(f"{__name__}."))


def op_backends() -> dict[str, tuple[str, ...]]:
    """Op name -> its compiled backends in order of preference (what `impl="auto"` tries before the reference)."""
    stems = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_") and not m.ispkg)
    return {stem: importlib.import_module(f".{stem}", __name__).BACKENDS for stem in stems}
