"""Runners for the model-level TCFormer cases: CTM blocks, backbones, classifiers, pose models, PPT.

Which one runs follows from the case's config and state-dict keys; sizes, heads, depths, parts come from the config.
Cluster numbers are arbitrary, so both sides are compared in the canonical numbering of the cases: clusters are numbered
by first appearance over the previous stage's canonical tokens (stage 1 in raster order).
"""

from __future__ import annotations

import re

import torch
from torch import nn

from tore_fast.layers._tokens import Tokens, grid_tokens
from tore_fast.layers.ctm import CTM
from tore_fast.layers.dynamic_block import TCBlock
from tore_fast.models.keypoints.layouts import convert_tcformer, tcformer_config
from tore_fast.models.keypoints.ppt import PPTTransformer
from tore_fast.models.keypoints.tcformer import TCFormer
from tore_fast.models.keypoints.tcformer_heads import TCFormerPose

from .case import Case

ATOL = 5e-5  # logits and maps of goldens
RTOL = 2e-5


def runner(case: Case):
    keys = (case.meta.get("state_dict") or {}).keys()
    if any(k.startswith("ctm.") for k in keys):
        return run_ctm_block
    if any("patch_embed1" in k for k in keys):
        return run_tcformer
    if any(k.endswith("fn.to_qkv.weight") for k in keys) and "pruning_loc" in case.config:
        return run_ppt
    return None


def canonical_order(cluster: torch.Tensor, previous: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """[M] ranks: ours -> canonical; `cluster` [N] of our tokens, `previous` [N] canonical number of our tokens."""
    seen = cluster[torch.argsort(previous)]
    first = torch.full((num_clusters,), len(seen))
    first.scatter_reduce_(0, seen, torch.arange(len(seen)), "amin")
    rank = torch.empty(num_clusters, dtype=torch.int64)
    rank[torch.argsort(first)] = torch.arange(num_clusters)
    return rank


def renumber(values: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """Rows of `values` [B, M, ...] put into canonical order."""
    return torch.stack([v[torch.argsort(r)] for v, r in zip(values, rank)])


def run_ctm_block(case: Case) -> None:
    c = case.config
    ctm = CTM(c["embed_dim"], c["dim_out"], c.get("sample_ratio", 0.25), c.get("k", 5))
    ctm.norm.eps = c.get("ctm_norm_eps", 1e-5)
    blocks = [
        TCBlock(
            c["dim_out"],
            c["num_heads"],
            c["mlp_ratio"],
            c["sr_ratio"],
            c.get("qkv_bias", True),
            use_sr_layer=c.get("use_sr_layer", True),
            norm_eps=c.get("block_norm_eps", 1e-6),
        )
        for _ in range(2)
    ]
    model = nn.ModuleDict({"ctm": ctm, "block": blocks[0], "block2": blocks[1]}).eval()
    state = case.state_dict()
    if not any(k.startswith("block2.") for k in state):
        del model["block2"]
    model.load_state_dict(state, strict=True)
    tokens = grid_tokens(case.input("tokens"), tuple(c["init_grid"]))
    with torch.no_grad():
        merged, original = ctm(tokens)
        first = blocks[0](merged, original)
        got = {"block1_out": first}
        if "block2" in model:
            got["block2_out"] = blocks[1](first)
    # on the grid every cell is its own token, so idx_token of the merged tokens is the cluster of each token
    n, m = tokens.num_tokens, merged.num_tokens
    rank = torch.stack([canonical_order(cl, torch.arange(n), m) for cl in merged.idx_token])
    checks = {
        "token_score": original.score[..., 0],
        "tokens_after_norm": original.x,
        "idx_cluster": rank.gather(1, merged.idx_token),
        "merged": renumber(merged.x, rank),
        "agg_weight": merged.agg_weight,
        **{k: renumber(t.x, rank) for k, t in got.items()},
    }
    compare(case, checks)


def run_tcformer(case: Case) -> None:
    state = convert_tcformer(case.state_dict())
    config = tcformer_config(case.config, state)
    if any(k.startswith("backbone.") for k in state):
        model = TCFormerPose(config)
        backbone = model.backbone
    else:
        model = backbone = TCFormer(config)
    if "patch_embed1.projection.weight" in case.meta["state_dict"] and "stem_norm_eps" not in case.config:
        backbone.patch_embed1.norm.eps = 1e-6  # mmpose
    model.load_state_dict(state, strict=True)
    model.eval()
    with torch.no_grad():
        stages = backbone.forward_features(case.input("image"))
        checks = stage_checks(stages)
        if model is backbone:
            if backbone.head is not None:
                checks["logits"] = backbone.head(stages[-1].x.mean(1))
            checks |= {f"map{i}": m for i, m in enumerate(backbone.forward_maps(case.input("image")))}
        else:
            maps = model.neck(stages)
            checks |= {f"neck{i}": m for i, m in enumerate(maps)}
            checks["heatmap"] = model.keypoint_head(maps[0])
            everything = [*maps, checks["heatmap"]]
            checks["sums"] = torch.stack([m.double().sum() for m in everything]).float()
            checks["abs_sums"] = torch.stack([m.double().abs().sum() for m in everything]).float()
    compare(case, checks)


def stage_checks(stages: list[Tokens]) -> dict[str, torch.Tensor]:
    """Everything a case may store about the stages, in canonical numbering."""
    checks = {"stage1_x": stages[0].x}
    b, n = stages[0].x.shape[:2]
    rank = torch.arange(n).expand(b, n)  # canonical number of each of our tokens of the previous stage
    for s, (before, after) in enumerate(zip(stages, stages[1:]), start=1):
        cluster = torch.empty(b, before.num_tokens, dtype=torch.int64)
        cluster.scatter_(1, before.idx_token, after.idx_token)  # all cells of a token agree
        new = torch.stack([canonical_order(c, r, after.num_tokens) for c, r in zip(cluster, rank)])
        checks[f"idx_cluster_{s}"] = renumber(new.gather(1, cluster), rank)
        checks[f"stage{s + 1}_x"] = renumber(after.x, new)
        checks[f"stage{s + 1}_idx_token"] = new.gather(1, after.idx_token)
        checks[f"stage{s + 1}_agg_weight"] = after.agg_weight
        rank = new
    return checks


def compare(case: Case, checks: dict[str, torch.Tensor]) -> None:
    """Every stored array against what we computed; `_everyK` and shorter token lists are strided samples."""
    names = [k for k in case.arrays if not k.startswith("input.") and k not in (case.meta.get("inputs") or {})]
    if not names:
        raise AssertionError(f"{case.path.name}: stores nothing to compare")
    for name in names:
        base = re.sub(r"_every\d+$", "", name)
        if base not in checks:
            raise AssertionError(f"{case.path.name}: stores {name!r}, the runner computes {sorted(checks)}")
        got, want = checks[base], case.arrays[name]
        if got.shape != want.shape and got.shape[1] > want.shape[1]:
            got = got[:, :: -(-got.shape[1] // want.shape[1])]
        if got.dtype.is_floating_point:
            scale = float(abs(want).max()) if base.endswith("sums") else 1.0
            case.close(name, got, atol=ATOL * max(scale, 1.0), rtol=RTOL)
        else:
            wrong = int((got.numpy() != want).sum()) if got.shape == want.shape else -1
            assert wrong == 0, f"{case.path.name}: {name}: {wrong} of {want.size} entries differ, shape {got.shape}"


def run_ppt(case: Case) -> None:
    c = case.config
    model = PPTTransformer(
        dim=c["dim"],
        depth=c["depth"],
        heads=c["heads"],
        mlp_dim=c["mlp_dim"],
        num_keypoints=c["num_keypoints"],
        pruning_layers=tuple(c["pruning_loc"]),
        keep_ratio=c["keep_ratio"],
        pos_every_layer=c.get("all_attn", True),
        scale_with_head="head" in str(c.get("attention_scale", "dim**-0.5")),
    )
    model.load_state_dict(case.state_dict(), strict=True)
    model.eval()
    with torch.no_grad():
        out = model(case.input("tokens"), case.input("pos"))
    checks = {"joint_tokens": out.joint_tokens}
    order = torch.argsort(out.kept, dim=1)
    checks["kept_tokens"] = torch.stack([x[o] for x, o in zip(out.patch_tokens, order)])
    for layer, (before, attention, kept) in out.pruned.items():
        by_position = torch.argsort(before, dim=1)
        checks[f"human_attention_{layer}"] = attention.gather(1, by_position)
        checks[f"kept_{layer}"] = kept.sort(1).values
    compare(case, checks)
