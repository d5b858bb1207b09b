"""load(upstream="tcformer") reaches the family's strict loader."""

from __future__ import annotations

import torch

from tore_fast.models import create_model, load


def test_official_classification_file(tmp_path):
    model = create_model("tcformer_light", num_classes=7).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "tcformer.pth")
    loaded = load(tmp_path / "tcformer.pth", "tcformer")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x))
