"""TCFormer's forward pass in the operator sequence of the official eager code, on the weights of our modules.

The baseline of benchmarks/models/keypoints.py: N x N distance matrices held in memory, token <-> map by sparse matrices
built anew in every call, attention with stored weights, maps in NCHW. Written from the description in the
specification; the official density noise is left out so that results can be compared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cluster(x: Tensor, num: int, k: int) -> Tensor:  # [B, N, C] -> [B, N]
    b, n, c = x.shape
    dist = torch.cdist(x, x) / c**0.5
    nearest = torch.topk(dist, k, dim=-1, largest=False).values
    density = (-(nearest**2).mean(-1)).exp()
    denser = (density[:, None, :] > density[:, :, None]).type(x.dtype)
    top = dist.flatten(1).max(-1).values[:, None, None]
    delta = (dist * denser + top * (1 - denser)).min(-1).values
    centers = torch.topk(delta * density, num, dim=-1).indices
    batch = torch.arange(b, device=x.device)
    rows = dist[batch[:, None].expand(b, num), centers]  # gathered [B, M, N]
    out = rows.argmin(1)
    out[batch[:, None].expand(b, num), centers] = torch.arange(num, device=x.device).expand(b, num)
    return out


def merge(x: Tensor, idx: Tensor, num: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    b, n, c = x.shape
    flat = (idx + num * torch.arange(b, device=x.device)[:, None]).reshape(-1)
    total = weight.new_zeros(b * num, 1).index_add_(0, flat, weight.reshape(-1, 1)) + 1e-6
    share = weight / total[flat].reshape(b, n, 1)
    out = x.new_zeros(b * num, c).index_add_(0, flat, (x * share).reshape(b * n, c))
    return out.reshape(b, num, c), share


def _pixels(grid: tuple[int, int], size: tuple[int, int], device) -> Tensor:
    ids = torch.arange(size[0] * size[1], device=device, dtype=torch.float32).view(1, 1, *size)
    return F.interpolate(ids, grid, mode="nearest").flatten().long()


def _move(x: Tensor, dst: Tensor, src: Tensor, num_dst: int, weight: Tensor | None = None) -> Tensor:
    """Weighted mean by a sparse matrix [B * num_dst, B * N] built on the spot."""
    b, n, c = x.shape
    offset = torch.arange(b, device=x.device)[:, None]
    dst, src = (dst + offset * num_dst).reshape(-1), (src + offset * n).reshape(-1)
    value = torch.ones_like(dst, dtype=x.dtype) if weight is None else weight.reshape(-1).to(x.dtype)
    where = torch.stack([dst, src])
    matrix = torch.sparse_coo_tensor(where, value, (b * num_dst, b * n))
    total = matrix @ x.new_ones(b * n, 1) + 1e-6
    matrix = torch.sparse_coo_tensor(where, value / total[dst, 0], (b * num_dst, b * n))
    return (matrix @ x.reshape(b * n, c)).reshape(b, num_dst, c)


class Dict:
    """The official token dictionary."""

    def __init__(self, x, size, grid, idx, agg, score=None):
        self.x, self.size, self.grid, self.idx, self.agg, self.score = x, size, grid, idx, agg, score


def to_map(x: Tensor, t: Dict, size: tuple[int, int]) -> Tensor:
    b, n, c = x.shape
    if n == t.idx.shape[1] == size[0] * size[1]:
        return x.transpose(1, 2).reshape(b, c, *size).contiguous()
    out = _move(x, _pixels(t.grid, size, x.device).expand(b, -1), t.idx, size[0] * size[1])
    return out.transpose(1, 2).reshape(b, c, *size).contiguous()


def to_tokens(m: Tensor, t: Dict) -> Tensor:
    b, c, h, w = m.shape
    x = m.flatten(2).transpose(1, 2).contiguous()
    if t.x.shape[1] == t.idx.shape[1] == h * w:
        return x
    return _move(x, t.idx, _pixels(t.grid, (h, w), m.device).expand(b, -1), t.x.shape[1])


def token_conv(m: nn.Module, x: Tensor, t: Dict) -> Tensor:
    y = F.conv2d(to_map(x, t, t.size), m.weight, m.bias, m.stride, m.padding, groups=m.groups)
    return m.skip(x.transpose(1, 2)).transpose(1, 2) + to_tokens(y, t)


def block(m: nn.Module, q: Dict, kv: Dict) -> Dict:
    a = m.attn
    yq = m.norm1(q.x)
    yk = yq if kv is q else m.norm1(kv.x)
    score = yk.new_zeros(*yk.shape[:2], 1) if kv.score is None else kv.score
    if a.sr_ratio > 1:
        both = to_map(torch.cat([yk, score], -1), kv, q.size)
        yk, score = both[:, :-1].contiguous(), both[:, -1:].contiguous()
        if a.reduces_by_conv:
            yk = a.norm(a.sr(yk).flatten(2).transpose(1, 2))
        else:
            yk = F.avg_pool2d(yk, a.sr_ratio).flatten(2).transpose(1, 2)
        score = F.avg_pool2d(score, a.sr_ratio).flatten(2).transpose(1, 2)
    b, n, c = yq.shape
    heads = a.num_heads
    query = a.q(yq).reshape(b, n, heads, -1).permute(0, 2, 1, 3)
    key, value = a.kv(yk).reshape(b, -1, 2, heads, c // heads).permute(2, 0, 3, 1, 4)
    weights = (query * (c // heads) ** -0.5) @ key.transpose(-2, -1) + score.squeeze(-1)[:, None, None, :]
    x = q.x + a.proj((weights.softmax(-1) @ value).transpose(1, 2).reshape(b, n, c))
    y = m.mlp.fc1(m.norm2(x))
    if hasattr(m.mlp.dwconv, "dwconv"):  # stage 1
        y = m.mlp.dwconv.dwconv(y.transpose(1, 2).reshape(b, -1, *q.size)).flatten(2).transpose(1, 2)
    else:
        y = token_conv(m.mlp.dwconv, y, q)
    return Dict(x + m.mlp.fc2(F.gelu(y)), q.size, q.grid, q.idx, q.agg)


def ctm(m: nn.Module, t: Dict) -> tuple[Dict, Dict]:
    y = m.norm(token_conv(m.conv, t.x, t))
    score = m.score(y)
    num = max(-(-y.shape[1] // 4), 1)
    idx = cluster(y, num, m.k)
    merged, share = merge(y, idx, num, score.exp())
    cells = idx.gather(1, t.idx)
    agg = t.agg * share[..., 0].gather(1, t.idx)
    half = tuple((s + 1) // 2 for s in t.size)
    return Dict(merged, half, t.grid, cells, agg), Dict(y, t.size, t.grid, t.idx, t.agg, score)


def features(m: nn.Module, image: Tensor) -> list[Dict]:
    y = m.patch_embed1.proj(image)
    size = tuple(y.shape[2:])
    x = m.patch_embed1.norm(y.flatten(2).transpose(1, 2))
    idx = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    t, stages = Dict(x, size, size, idx, torch.ones_like(idx, dtype=x.dtype)), []
    for s in range(1, m.num_stages + 1):
        keys = t
        if s > 1:
            t, keys = ctm(getattr(m, f"ctm{s - 1}"), t)
        for i, b in enumerate(getattr(m, f"block{s}")):
            t = block(b, t, keys if i == 0 and s > 1 else t)
        t = Dict(getattr(m, f"norm{s}")(t.x), t.size, t.grid, t.idx, t.agg)
        stages.append(t)
    return stages


def classify(m: nn.Module, image: Tensor) -> Tensor:
    return m.head(features(m, image)[-1].x.mean(1))


def heatmaps(m: nn.Module, image: Tensor) -> Tensor:
    stages = features(m.backbone, image)
    out = []
    for t, lateral in zip(stages, m.neck.lateral_convs):
        x = lateral.conv(t.x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        out.append(Dict(x, t.size, t.grid, t.idx, t.agg))
    for i in range(len(out) - 2, -1, -1):
        fine, coarse = out[i], out[i + 1]
        fine.x = fine.x + _move(coarse.x, fine.idx, coarse.idx, fine.x.shape[1], fine.agg)
        out[i] = block(m.neck.merge_blocks[i], fine, fine)
    return m.keypoint_head(to_map(out[0].x, out[0], out[0].size))
