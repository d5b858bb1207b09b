"""Every compiled op once against its plain reference on small random inputs, in seconds: for `tore-fast doctor`.

No replacement of the tests: one shape an op, float32. It finds binaries that do not fit the machine or this torch.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import ops

TOLERANCE = 2e-4  # of float32 against the reference, share of the largest value (16-bit inner products are not used)


class Outcome(NamedTuple):
    """One op with one backend."""

    op: str
    backend: str
    ok: bool
    said: str  # largest difference, or the error
    seconds: float


def _cases(device: str) -> Iterator[tuple[str, str, Tensor, Callable[[str], Any]]]:
    """(op, module with why_not, tensor that decides the backend, call of an impl)."""
    make = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(device)

    x, q, k, v = rand(2, 48, 32), *(rand(2, 4, 40, 16) for _ in range(3))
    cluster = torch.randint(0, 12, (2, 48), generator=make).to(device)
    rho = rand(2, 48).abs()
    dense = np.random.default_rng(0).normal(size=(70, 48)) * (np.random.default_rng(1).random((70, 48)) < 0.1)
    matrix = ops.CsrMatrix(*(t.to(device) for t in ops.csr_matrix(dense)))
    weight, bias = rand(64, 32) / 6, rand(64)
    scores = rand(2, 60)
    yield "knn_density", "knn_density", x, lambda i: ops.knn_density(x, 5, impl=i)
    yield "density_delta", "density_delta", x, lambda i: ops.density_delta(x, rho, impl=i)
    yield "dpc_knn_cluster", "dpc_knn_cluster", x, lambda i: ops.dpc_knn_cluster(x, 12, 5, impl=i)[:2]
    yield "cluster_merge", "cluster_merge", x, lambda i: ops.cluster_merge(x, cluster, 12, impl=i)
    yield "bipartite_match", "bipartite_match", x, lambda i: ops.bipartite_soft_matching(x, 16, impl=i)[:4]
    yield "pruned_attention", "pruned_attention", q, lambda i: ops.pruned_attention(q, k, v, impl=i)
    yield "mesh_upsample", "mesh_upsample", x, lambda i: ops.mesh_upsample(x, matrix, impl=i)
    yield "linear", "linear", x, lambda i: ops.linear(x, weight, bias, impl=i)
    yield "ppt_select", "ppt_select", scores, lambda i: ops.ppt_select(scores, 20, impl=i)


def self_test(device: str = "cpu") -> list[Outcome]:
    """Outcome of every op with every backend that takes its tensors on `device`; ops without one are left out."""
    found = []
    for op, stem, probe, call in _cases(device):
        module = importlib.import_module(f"{__package__}.{stem}")
        backends = [b for b in module.BACKENDS if module.why_not(b, probe) is None]
        wanted = call("reference") if backends else None
        for backend in backends:
            start = time.perf_counter()
            try:
                ok, said = _compare(call(backend), wanted)
            except (RuntimeError, ValueError, TypeError, OSError) as e:
                ok, said = False, f"{type(e).__name__}: {e}".splitlines()[0]
            found.append(Outcome(op, backend, ok, said, time.perf_counter() - start))
    return found


def _compare(found: Any, wanted: Any) -> tuple[bool, str]:
    worst = 0.0
    for a, b in zip(_tensors(found), _tensors(wanted), strict=True):
        if a.shape != b.shape:
            return False, f"shape {list(a.shape)}, the reference has {list(b.shape)}"
        if not a.is_floating_point():
            if not torch.equal(a.long(), b.long()):
                return False, f"{int((a.long() != b.long()).sum())} of {a.numel()} indices differ from the reference"
            continue
        scale = float(b.abs().max()) + 1e-6
        worst = max(worst, float((a.double() - b.double()).abs().max()) / scale) if a.numel() else worst
    return worst <= TOLERANCE, f"largest difference {worst:.1e} of the largest value"


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for t in value if isinstance(t, Tensor)]
