"""Video pose hosts, base, HoT and TPC, against the same weights run the way the official code runs them.

"official style" below is our own rewriting of that execution: tokens folded to (b f) j c and (b j) f c with a copy at
every change, softmax attention spelled out, TRA's query projected once per joint, torch.cdist in TPC. Same arithmetic,
same result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tore_fast.models import create_model, model_entry
from tore_fast.models._count import count_model

from ..harness import Case, Contender

NAMES = (
    "mixste_243",
    "hot_mixste_243",
    "tpc_mixste_243",
    "motionbert_lite_243",
    "hot_motionbert_243",
    "mhformer_351",
    "tpc_mhformer_351",
)
QUICK = ("mixste_27", "hot_mixste_27")
# (base, HoT): how much of the saved multiply-adds is saved time; both ours, in the same rounds
PAIRS = (("mixste_243", "hot_mixste_243"), ("motionbert_lite_243", "hot_motionbert_243"))
QUICK_PAIRS = (("mixste_27", "hot_mixste_27"),)
LOW_PRECISION = ("mixste_243", "motionbert_lite_243", "mhformer_351")  # CPU: float32 weights, bf16 products


def _linear(layer, x: Tensor) -> Tensor:
    """Without the fusion and the packed weights that our layers have on the CPU."""
    return F.linear(x, layer.weight, layer.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """[N, L, C] attention with its weight matrix in memory."""
    q, k, v = (t.reshape(*t.shape[:2], heads, -1).permute(0, 2, 1, 3) for t in (q, k, v))
    weight = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weight @ v).transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)


def _self_attention(attention, x: Tensor) -> Tensor:
    qkv = _linear(attention.qkv, x).reshape(*x.shape[:2], 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    weight = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return _linear(attention.proj, (weight @ v).transpose(1, 2).reshape(x.shape))


def _cross_attention(attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (
        _linear(layer, t) for layer, t in ((attention.linear_q, q), (attention.linear_k, k), (attention.linear_v, v))
    )
    return _linear(attention.proj, _attend(q, k, v, attention.heads))


def _mlp(mlp, x: Tensor) -> Tensor:
    return _linear(mlp.fc2, F.gelu(_linear(mlp.fc1, x)))


def _block(block, x: Tensor) -> Tensor:
    x = x + _self_attention(block.attn, block.norm1(x))
    return x + _mlp(block.mlp, block.norm2(x))


def _fold(x: Tensor, axis: str) -> Tensor:
    """[B, F, J, C] -> (b f) j c or (b j) f c, contiguous."""
    return (x if axis == "joints" else x.transpose(1, 2)).flatten(0, 1).contiguous()


def _unfold(x: Tensor, batch: int, axis: str) -> Tensor:
    x = x.unflatten(0, (batch, -1))
    return (x if axis == "joints" else x.transpose(1, 2)).contiguous()


def _tpc(pooled: Tensor, noise: Tensor, keep: int, center: int | None) -> Tensor:
    distance = torch.cdist(pooled, pooled) / pooled.shape[-1] ** 0.5
    near = distance.topk(2, dim=-1, largest=False).values
    density = (-(near**2).mean(dim=-1)).exp() + noise
    denser = (density[:, None] > density[:, :, None]).to(pooled.dtype)
    far = distance.flatten(1).max(dim=-1).values[:, None, None]
    score = (distance * denser + far * (1 - denser)).min(dim=-1).values * density
    if center is None:
        return score.topk(keep, dim=-1).indices.sort(dim=-1).values
    score[:, center] = -torch.inf
    index = score.topk(keep - 1, dim=-1).indices
    return torch.cat([index, torch.full_like(index[:, :1], center)], dim=-1).sort(dim=-1).values


def _pick(x: Tensor, index: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0], device=x.device)[:, None], index]


def _prune(model, x: Tensor, noise: Tensor) -> Tensor:
    index = _tpc(x.mean(dim=2), noise, model.config.keep_frames, model.selector.center)
    x = _pick(x, index)
    return x + model.pos_embed_token[:, :, None] if model.config.recovery == "tra" else x


def _recover(model, x: Tensor) -> Tensor:
    if model.config.recovery != "tra":
        return x
    kept = _fold(x, "frames")
    token = model.x_token.expand(len(kept), -1, -1).contiguous()
    return _unfold(token + _cross_attention(model.cross_attention, token, kept, kept), x.shape[0], "frames")


def mixste(model, x: Tensor, noise: Tensor) -> Tensor:
    b = x.shape[0]
    x = model.Spatial_patch_to_embedding(x) + model.Spatial_pos_embed[:, None]
    for i, (spatial, temporal) in enumerate(zip(model.STEblocks, model.TTEblocks)):
        if i == model.config.prune_block:
            x = _prune(model, x, noise)
        x = _unfold(model.Spatial_norm(_block(spatial, _fold(x, "joints"))), b, "joints")
        x = _fold(x, "frames")
        if i == 0:
            x = x + model.Temporal_pos_embed
        x = _unfold(model.Temporal_norm(_block(temporal, x)), b, "frames")
    return model.head(_recover(model, x))


def motionbert(model, x: Tensor, noise: Tensor) -> Tensor:
    b = x.shape[0]

    def stream(block, x: Tensor) -> Tensor:
        for axis in block.order:
            a, n1, n2, m = (
                getattr(block, f"{p}_{axis[0].replace('j', 's').replace('f', 't')}")
                for p in ("attn", "norm1", "norm2", "mlp")
            )
            h = _fold(x, axis)
            h = h + _self_attention(a, n1(h))
            x = _unfold(h + _mlp(m, n2(h)), b, axis)
        return x

    x = model.joints_embed(x) + model.pos_embed[:, None] + model.temp_embed[:, : x.shape[1]]
    for i, (st, ts, fusion) in enumerate(zip(model.blocks_st, model.blocks_ts, model.ts_attn)):
        if i == model.config.prune_block:
            x = _prune(model, x, noise)
        p, q = stream(st, x), stream(ts, x)
        weight = fusion(torch.cat([p, q], dim=-1)).softmax(dim=-1)
        x = p * weight[..., :1] + q * weight[..., 1:]
    return model.head(_linear(model.pre_logits.fc, _recover(model, model.norm(x))).tanh())


def mhformer(model, x: Tensor, noise: Tensor) -> Tensor:
    t = model.Transformer_hypothesis
    x = x.flatten(2).transpose(1, 2).contiguous()
    h = []
    for i in (1, 2, 3):
        encoder, y = getattr(model, f"Transformer_encoder_{i}"), getattr(model, f"norm_{i}")(x)
        y = y + encoder.pos_embed
        for block in encoder.blocks:
            y = _block(block, y)
        x = x + encoder.norm(y)
        h.append(getattr(model, f"embedding_{i}")(x).transpose(1, 2).contiguous() + getattr(t, f"pos_embed_{i}"))
    for i, block in enumerate(t.SHR_blocks):
        if i == model.config.prune_block:
            index = _tpc(torch.cat(h, dim=-1), noise, model.config.keep_frames, model.selector.center)
            h = [_pick(v, index) for v in h]
        h = [
            v + _self_attention(getattr(block, f"attn_{j}"), getattr(block, f"norm1_{j}")(v))
            for j, v in enumerate(h, 1)
        ]
        h = _joint_mlp(block, h)
    for block in t.CHI_blocks:
        for j, order in enumerate(((1, 2, 0), (0, 2, 1), (0, 1, 2)), 1):
            q, k, v = (getattr(block, f"norm3_{j}{role}")(h[o]) for role, o in enumerate(order, 1))
            h[j - 1] = h[j - 1] + _cross_attention(getattr(block, f"attn_{j}"), q, k, v)
        h = _joint_mlp(block, h)
    y = t.norm(torch.cat(h, dim=-1)).permute(0, 2, 1).contiguous()
    return model.regression(y).transpose(1, 2).reshape(y.shape[0], -1, 17, 3)


def _joint_mlp(block, h: list[Tensor]) -> list[Tensor]:
    x = torch.cat(h, dim=-1)
    return list((x + _mlp(block.mlp, block.norm2(x))).chunk(3, dim=-1))


OFFICIAL_STYLE = {"mixste": mixste, "motionbert": motionbert, "mhformer": mhformer}  # by family


def _model(name: str, device: str, dtype: torch.dtype):
    torch.manual_seed(0)
    model = create_model(name).to(device, dtype).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "token" in key or "pos_embed" in key:
                p.normal_(std=0.1)
    return model.prepare()


def _inputs(batch: int, shape: tuple[int, ...], device: str, dtype: torch.dtype):
    def inputs(generator: torch.Generator):
        x = torch.randn(batch, *shape, generator=generator, device=device).to(dtype)
        # stands for the official code's random tie-break, large enough that rounding cannot change the kept frames
        return x, 1e-3 * torch.rand(batch, shape[0], generator=generator, device=device)

    return inputs


def _case(name: str, batch: int, device: str, dtype: torch.dtype, autocast: bool = False) -> Case:
    model = _model(name, device, dtype)
    official = OFFICIAL_STYLE[model.facts.family]
    entry, pruned = model_entry(name), model.config.pruned
    shape = entry.input_shape

    def ours(x, noise):
        if (
            autocast and pruned
        ):  # the frames float32 chooses: rounding moves TPC's near-ties, which is no error of the products
            index = model(x, density_noise=noise).index
            with torch.autocast(device, torch.bfloat16):
                return model(x, index=index).pose
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return model(x, density_noise=noise if pruned else None).pose

    contenders = [
        Contender("official style, eager", lambda x, noise: official(model, x, noise)),
        Contender("tore_fast, bf16 autocast" if autocast else "tore_fast", ours, ours=True),
    ]
    limit = 3e-2 if autocast else {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    return Case(
        "vpt",
        name + (f" b{batch}" if batch > 1 else "") + (" bf16 autocast" if autocast else ""),
        _inputs(batch, shape, device, dtype),
        contenders,
        device=device,
        dtype=dtype,
        macs=0.0 if entry.paper is None else entry.paper.gmacs * 1e9 * batch,
        items=batch * (shape[0] if model.config.output_frames == shape[0] else 1),
        error_limit=limit,
        params={"frames": shape[0], "keep_frames": model.config.keep_frames, "prune_block": model.config.prune_block},
    )


def _pair(base: str, hot: str, device: str, dtype: torch.dtype) -> Case:
    """Base against HoT, both ours; `params.mac_ratio` is what the time ratio could reach."""
    slow, fast = _model(base, device, dtype), _model(hot, device, dtype)
    macs = [count_model(n).macs for n in (base, hot)]
    shape = model_entry(base).input_shape
    # two different models: what can be checked is that both give a pose for every frame, and no NaN
    same_frames = lambda got, want: (
        0.0 if got.shape == want[0].shape and bool(torch.isfinite(got).all()) else float("inf")
    )
    return Case(
        "vpt",
        f"{hot} v {base}",
        _inputs(1, shape, device, dtype),
        [
            Contender(f"tore_fast {base}", lambda x, noise: slow(x).pose),
            Contender(f"tore_fast {hot}", lambda x, noise: fast(x, density_noise=noise).pose, ours=True),
        ],
        device=device,
        dtype=dtype,
        macs=macs[1],
        items=shape[0],
        check=same_frames,
        params={"mac_ratio": macs[0] / macs[1]},
    )


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    low = [] if quick or device != "cpu" or dtype != torch.float32 else LOW_PRECISION
    return [
        *(_case(name, 1, device, dtype) for name in (QUICK if quick else NAMES)),
        *(_case(name, 1, device, dtype, autocast=True) for name in low),
        *(_pair(*pair, device, dtype) for pair in (QUICK_PAIRS if quick else PAIRS)),
    ]


def sized(device: str, dtype: torch.dtype, quick: bool) -> list[Callable[[int], Case]]:
    """The same cases as functions of the batch."""
    return [functools.partial(_case, name, device=device, dtype=dtype) for name in (QUICK if quick else NAMES)]
