"""A compiled module that does not fit the sources: one clear line, the references take over, no torch traceback."""

from __future__ import annotations

import pytest
import torch

from tore_fast import _ext
from tore_fast.ops import csr_matrix, mesh_upsample
from tore_fast.ops._dispatch import BackendUnavailable


def test_the_binary_here_fits_these_sources():
    if _ext.cpu_module is None:
        pytest.skip(_ext.cpu_reason)
    assert _ext.build_info()["schemas"] == _ext.SCHEMAS_ID


@pytest.mark.parametrize("name", ["_C", "_C_cuda"])
def test_a_stale_binary_is_one_line(name, monkeypatch):
    assert _ext.stale_reason(name, {"schemas": _ext.SCHEMAS_ID}) is None
    reason = _ext.stale_reason(name, {"schemas": "0123456789ab"})
    assert reason.count("\n") == 0 and f"tore_fast.{name}" in reason
    assert "0123456789ab" in reason and _ext.SCHEMAS_ID in reason and "pip install" in reason


def test_a_stale_binary_is_not_called(monkeypatch):
    if _ext.cpu_module is None:
        pytest.skip(_ext.cpu_reason)
    monkeypatch.setattr(_ext, "SCHEMAS_ID", "of another day")
    with pytest.warns(RuntimeWarning, match="was built from other sources .*rebuild: pip install"):
        module, reason = _ext._load("_C")
    assert module is None
    monkeypatch.setattr(_ext, "cpu_reason", reason)
    u = csr_matrix(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    x = torch.rand(1, 2, 3)
    with pytest.raises(
        BackendUnavailable, match="mesh_upsample: impl='cpu' cannot run here: tore_fast._C was built from other sources"
    ):
        mesh_upsample(x, u, impl="cpu")
    assert torch.equal(mesh_upsample(x, u), mesh_upsample(x, u, impl="reference"))
