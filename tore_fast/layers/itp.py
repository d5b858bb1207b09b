"""Image token pruning (ITP): which image tokens reach the transformers, by four selectors behind one interface.

In: the [B, C, h, w] feature map of a model (models/mesh/tore.py, models/mesh/metro.py); out: kept tokens with their
positions and a heat map over the grid. `soft` is the released TORE; `cluster` uses ops.dpc_knn_cluster_merge.
Parameters live on the model itself (mixin), because the official checkpoints have them at the top level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import dpc_knn_cluster_merge, ppt_select
from ..ops._cluster_args import FORMS
from .positional import sine_position

SELECTORS = ("soft", "cluster", "attention", "none")


class Selection(NamedTuple):
    tokens: Tensor  # [B, M, C]
    pos: Tensor  # [M, C] or [B, M, C]
    heatmap: Tensor | None  # [B, M, h * w], rows sum to one: where each kept token comes from


class TokenSelection(nn.Module):
    """Mixin: `init_selection` adds a selector's parameters to the model, `select_tokens` applies it."""

    selector: str
    keep_num: int
    grid: tuple[int, int]
    token_pos: Tensor

    def init_selection(
        self,
        selector: str,
        dim: int,  # channels of the feature map
        grid: tuple[int, int],
        keep_ratio: float,
        hidden: int = 128,
        gain: float = 1.0,
        neighbors: int = 5,
        knn_form: str = "released",
    ) -> None:
        """M = int(h * w * keep_ratio) tokens are kept; "none" keeps all of them untouched.

        soft: conv 3x3 -> GELU -> linear -> softmax over the positions = weights of M weighted means (released TORE;
            no token is chosen or dropped), then one LayerNorm over the whole [M, C] block. Positions: an M x 1 grid.
            `gain` multiplies the linear layer's initial weights. At 1 (released) every heat map starts as a
            near-uniform mean, so all tokens start alike; short trainings from scratch want peaks from the start (24:
            docs/study.md).
        cluster: DPC-kNN density peaks, then cluster averages (the paper's wording); positions are averaged alike.
            `knn_form`: its density as the official code has it, or "printed", see ops/dpc_knn_cluster.py.
        attention: one attention over the tokens; the M tokens that receive most attention stay (PPT), with theirs
            positions. Its context is added to the tokens, so its projections are trained by the task.

        Cluster and attention tokens go on as they are, as untouched ones do: a LayerNorm of their own did not help.

        Raises:
            ValueError: unknown selector, keep_ratio outside (0, 1] or so small that no token is left.
        """
        if selector not in SELECTORS:
            raise ValueError(f"ITP: selector must be one of {SELECTORS}, got {selector!r}")
        count = grid[0] * grid[1]
        self.selector, self.grid = selector, (grid[0], grid[1])
        self.keep_num = count if selector == "none" else int(count * keep_ratio)
        if not 0 < keep_ratio <= 1 or self.keep_num < 1:
            raise ValueError(f"ITP: keep_ratio must keep 1..{count} of {count} tokens, got {keep_ratio}")
        if knn_form not in FORMS:
            raise ValueError(f"ITP: knn_form must be one of {FORMS}, got {knn_form!r}")
        self.knn_form = knn_form
        self.neighbors = min(neighbors, count - (knn_form == "printed"))
        if selector == "soft":
            self.token_selector_conv2d = nn.Conv2d(dim, hidden, 3, padding=1)
            self.token_selector_fc = nn.Linear(hidden, self.keep_num)
            self.layer_norm = nn.LayerNorm([self.keep_num, dim])
            with torch.no_grad():
                self.token_selector_fc.weight.mul_(gain)
        if selector == "attention":
            self.token_attention_qk = nn.Linear(dim, 2 * hidden)
            self.token_attention_scale = nn.Parameter(torch.full((dim,), 0.1))
        self.register_buffer("token_pos", self.token_positions(dim), persistent=False)

    def token_positions(self, dim: int) -> Tensor:
        """Sine encodings of width `dim`: of the M x 1 grid of kept tokens (soft), else of the whole grid [h * w,
        dim]."""
        return sine_position(self.keep_num, 1, dim) if self.selector == "soft" else sine_position(*self.grid, dim)

    def place(self, heatmap: Tensor | None, pos: Tensor) -> Tensor:
        """`pos` of `token_positions` for the kept tokens: [M, C], or per image [B, M, C] where the image decides."""
        if heatmap is None or self.selector == "soft":
            return pos
        return heatmap @ pos

    @property
    def has_fixed_positions(self) -> bool:
        """Whether the positions of the kept tokens are the same for every image."""
        return self.selector in ("soft", "none")

    def select_tokens(self, features: Tensor) -> Selection:  # [B, C, h, w]
        tokens = features.flatten(2).transpose(1, 2)  # [B, N, C], row-major
        if self.selector == "soft":
            return self._soft(features, tokens)
        if self.selector == "cluster":
            return self._cluster(tokens)
        if self.selector == "attention":
            return self._attention(tokens)
        return Selection(tokens, self.token_pos, None)

    def _soft(self, features: Tensor, tokens: Tensor) -> Selection:
        scores = F.gelu(self.token_selector_conv2d(features)).flatten(2).transpose(1, 2)  # [B, N, hidden]
        heatmap = self.token_selector_fc(scores).transpose(1, 2).softmax(-1)  # [B, M, N]
        return Selection(self.layer_norm(heatmap @ tokens), self.token_pos, heatmap)

    def _cluster(self, tokens: Tensor) -> Selection:
        found = dpc_knn_cluster_merge(tokens, self.keep_num, k=self.neighbors, form=self.knn_form)
        slot = torch.arange(self.keep_num, device=tokens.device)[:, None]
        heatmap = torch.where(found.cluster[:, None] == slot, found.norm_weight[:, None].to(tokens.dtype), 0.0)
        return Selection(found.merged, heatmap @ self.token_pos, heatmap)

    def _attention(self, tokens: Tensor) -> Selection:
        heads = 8
        q, k = self.token_attention_qk(tokens).chunk(2, -1)
        q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1).mean(1)  # [B, N, N]
        importance = weights.detach().sum(1)  # attention every token receives
        kept = ppt_select(importance, self.keep_num, sort_by_position=True)  # [B, M]
        tokens = tokens + self.token_attention_scale * (weights @ tokens)
        index = kept[..., None].expand(-1, -1, tokens.shape[-1])
        heatmap = F.one_hot(kept, importance.shape[1]).to(tokens.dtype)
        return Selection(tokens.gather(1, index), self.token_pos[kept], heatmap)
