"""16-bit clustering on the GPU's path (matrix units for channels in eights): densities, distances to denser tokens,
lists and assignment against float64 on the same rounded tokens, on a GPU or in the emulator. The CPU kernels read
float32.

A choice is right when what it chose is as near as the exact best up to the rounding of a distance made of two norms and
a product (about 4 * 2^-23 * |a|^2 of d2 * C); which of two equal ones is chosen is not compared.
"""

from __future__ import annotations

import pytest
import torch
from ops import emulated
from ops.clustering import walk

from tore_fast.ops import density_delta, dpc_knn_cluster, knn_density
from tore_fast.ops.reference.density_delta import density_delta_reference
from tore_fast.ops.reference.knn_density import knn_density_reference

DTYPES = (torch.float16, torch.bfloat16)
WHERE = [
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
    pytest.param("emulated", marks=pytest.mark.skipif(emulated.missing, reason=emulated.NEEDS)),
]


def distances(x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[2] ** 0.5


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens,channels", [(300, 64), (300, 72), (3136, 64)])
def test_half_clusters(where, dtype, tokens, channels):
    if where == "emulated" and tokens > 1000:
        tokens = 700  # eleven row tiles; 3136 take minutes there
    kernels = emulated.kernels() if where == "emulated" else torch.ops.tore_fast
    device = "cpu" if where == "emulated" else "cuda"
    count = tokens // 4
    x = walk(1, tokens, channels).to(dtype).to(device)
    rho = kernels.knn_density(x, 5, None)
    torch.testing.assert_close(rho.double(), knn_density_reference(x.double(), 5), rtol=2e-5, atol=1e-9)
    d = distances(x)
    slack = 3e-5 * d + 3 * (4 * 2**-23 * float(x.double().square().sum(-1).max() / channels)) ** 0.5
    delta, parent = kernels.density_delta(x, rho, None, False)
    want, _ = density_delta_reference(x.double(), rho.double())
    assert ((delta.double() - want).abs() <= 3e-5 * want + slack.amax(2)).all()
    centers, cluster, got_rho, got_delta, _ = kernels.dpc_knn_cluster(x, count, 5, None, None, None, False, True, 0)
    assert torch.equal(got_rho, rho)
    assert ((got_delta.double() - want).abs() <= 3e-5 * want + slack.amax(2)).all()
    to_centers = d.gather(1, centers[..., None].expand(-1, -1, tokens))
    chosen = to_centers.gather(1, cluster[:, None])[:, 0]
    assert (chosen <= to_centers.amin(1) + slack.amax(2)).all()
    assert torch.equal(cluster.gather(1, centers), torch.arange(count, device=device)[None])


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_tokens_stay_out_of_the_others_way(where, dtype):
    """A NaN token has no distance: it is nobody's neighbour, whatever unit computes the distances."""
    kernels = emulated.kernels() if where == "emulated" else torch.ops.tore_fast
    x = walk(1, 300, 64).to(dtype)
    clean = x.clone()
    x[0, 10:20] = float("nan")
    keep = torch.ones(300, dtype=torch.bool)
    keep[10:20] = False
    x, clean = (t.to("cpu" if where == "emulated" else "cuda") for t in (x, clean))
    got = kernels.knn_density(x, 5, None)[0, keep]
    want = knn_density_reference(clean[:, keep].double(), 5)[0]
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-9)
    wide = knn_density(x.float(), 5, impl="auto")[0, keep]
    torch.testing.assert_close(wide.double(), want, rtol=2e-5, atol=1e-9)
    assert density_delta(x.float(), torch.rand(1, 300, device=x.device)).delta.shape == (1, 300)
    assert dpc_knn_cluster(x.float(), 20).cluster.max() < 20
