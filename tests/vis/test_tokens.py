"""Token images: regions are exactly the owners, colours their means; the command writes a PNG and explains bad
input."""

from __future__ import annotations

import numpy as np
import torch
from made_up.command import command
from PIL import Image

from tore_fast.layers._tokens import grid_tokens
from tore_fast.models import create_model, save
from tore_fast.vis.tokens import draw_regions, region_borders, token_of_pixel, token_panel

TINY = dict(embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), depths=(1, 1, 1, 1))


def test_owner_of_pixels_and_mean_colours():
    idx = torch.tensor([0, 0, 1, 1, 0, 2, 2, 1])  # 2 x 4 cells
    owner = token_of_pixel(idx, (2, 4), (8, 16))
    assert owner.shape == (8, 16) and owner[0, 7] == 0 and owner[0, 8] == 1 and owner[7, 5] == 2
    image = np.random.default_rng(0).integers(0, 255, (8, 16, 3), dtype=np.uint8)
    drawn = draw_regions(image, owner, border=None)
    for token in range(3):
        assert len(np.unique(drawn[owner == token], axis=0)) == 1
        np.testing.assert_allclose(drawn[owner == token][0], image[owner == token].mean(0), atol=0.51)
    edge = region_borders(owner)
    assert edge[0, 8] and not edge[0, 7] and not edge[0, 4]


def test_panel_has_a_image_per_stage():
    x = torch.rand(1, 12, 3)
    stage = grid_tokens(x, (3, 4))
    image = np.zeros((12, 16, 3), np.uint8)
    assert token_panel(image, [stage, stage, stage]).shape == (12 + 16, 3 * 16 + 2 * 6, 3)


def test_command(tmp_path, capsys):
    torch.manual_seed(0)
    save(create_model("tcformer_light", num_classes=3, **TINY), tmp_path / "model", "tcformer_light")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "p.jpg")
    out = tmp_path / "maps"
    assert command("viz", "tokens", tmp_path / "p.jpg", "--model", tmp_path / "model", "--out", out, "--size", 64) == 0
    assert Image.open(out / "p_tokens.png").size == (4 * 85 + 3 * 6, 64 + 16)
    said = capsys.readouterr().out
    assert "stage 4: 6 tokens" in said and "p_tokens.png" in said
    for arguments in ([str(tmp_path / "missing.jpg")], [str(tmp_path / "p.jpg"), "--model", "ppt_s"]):
        assert command("viz", "tokens", *arguments, "--out", out) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("tore-fast viz tokens: ")
