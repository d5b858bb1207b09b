"""bipartite_match: ToMe matching plus size-weighted merge, against the operator sequence of the official code."""

from __future__ import annotations

import torch

from tore_fast.ops import bipartite_soft_matching, merge

from ..harness import Case, Contender

SHAPES = (("ViT-H 192", 192, 80, 1280, 40), ("DeiT 197", 197, 64, 384, 16), ("2nd merge 152", 152, 80, 1280, 40))


def eager_match(metric: torch.Tensor, r: int):
    """Normalise, one product of even with odd tokens, row maximum, argsort: unmerged, sources, destinations."""
    m = metric / metric.norm(dim=-1, keepdim=True)
    best, dst = (m[:, 0::2] @ m[:, 1::2].transpose(-1, -2)).max(-1)
    edge = best.argsort(-1, descending=True)[..., None]
    unm, src = edge[:, r:], edge[:, :r]
    return unm, src, dst[..., None].gather(1, src)


def eager_merge(x: torch.Tensor, plan, size: torch.Tensor) -> torch.Tensor:
    unm, src, dst = plan
    c = x.shape[2]

    def reduce(t):
        a, b = t[:, 0::2], t[:, 1::2]
        width = t.shape[2]
        kept = a.gather(1, unm.expand(-1, -1, width))
        moved = a.gather(1, src.expand(-1, -1, width))
        return torch.cat([kept, b.scatter_reduce(1, dst.expand(-1, -1, width), moved, "sum")], 1)

    assert c
    return reduce(x * size) / reduce(size)


def onehot_merge(x: torch.Tensor, plan, size: torch.Tensor) -> torch.Tensor:
    """The same by a [B, T - r, T] membership matrix and one batched product."""
    unm, src, dst = plan
    batch, tokens, _ = x.shape
    kept = unm.shape[1]
    rows = kept + (tokens // 2)
    owner = torch.empty(batch, tokens, dtype=torch.long, device=x.device)
    owner[:, 1::2] = torch.arange(kept, rows, device=x.device)
    even = torch.empty(batch, tokens - tokens // 2, dtype=torch.long, device=x.device)
    even.scatter_(1, unm[..., 0], torch.arange(kept, device=x.device).expand(batch, -1))
    even.scatter_(1, src[..., 0], dst[..., 0] + kept)
    owner[:, 0::2] = even
    share = torch.zeros(batch, rows, tokens, dtype=x.dtype, device=x.device).scatter_(
        1, owner[:, None], size.transpose(1, 2).to(x.dtype)
    )
    return (share @ x) / share.sum(-1, keepdim=True)


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    out = []
    for name, tokens, dim, channels, r in SHAPES[:1] if quick else SHAPES:
        for batch in (1, 8) if device == "cpu" else (8, 64):

            def make(generator, shape=(batch, tokens), widths=(dim, channels)):
                b, t = shape
                metric, x = (torch.randn(b, t, w, device=device, generator=generator).to(dtype) for w in widths)
                return [metric, x, torch.rand(b, t, 1, device=device, generator=generator) + 0.5]

            def ours(metric, x, size, r=r):
                return merge(bipartite_soft_matching(metric, r), x, "wavg", size).x

            def eager(metric, x, size, r=r):
                return eager_merge(x, eager_match(metric, r), size.to(x.dtype))

            def reference(metric, x, size, r=r):  # the plan must be that of the inputs as rounded, in float64
                plan = bipartite_soft_matching(metric, r, impl="reference")
                return merge(plan, x, "wavg", size, impl="reference").x

            size = torch.empty((), dtype=dtype).element_size()
            out.append(
                Case(
                    "bipartite_match",
                    f"{name} B{batch} T{tokens} r{r} C{channels}",
                    make,
                    [
                        Contender("tore_fast", ours, ours=True),
                        Contender("eager, as the official code", eager),
                        Contender(
                            "eager match + one-hot bmm", lambda m, x, s, r=r: onehot_merge(x, eager_match(m, r), s)
                        ),
                        Contender("compile(eager)", torch.compile(eager, fullgraph=True), heavy=True),
                    ],
                    reference,
                    False,
                    device,
                    dtype,
                    bytes=batch * (tokens * dim + (2 * tokens - r) * channels) * size,
                    macs=batch * (tokens // 2) ** 2 * dim,
                    items=batch,
                )
            )
    return out
