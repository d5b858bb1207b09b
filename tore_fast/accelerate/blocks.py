"""How the blocks of each known family compute, so that tokens can merge between attention and MLP.

In: a block of somebody's model; out: its `Family`, chosen by what the block has, never by its class's name, and
proved by running both on random tokens (`probe`). Nothing here holds weights: the block's own modules do the work.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.proportional import proportional_attention


class Refused(ValueError):
    """This object cannot be accelerated; the message says why in one sentence."""


class Heads(NamedTuple):
    """Queries, keys and values [B, H, N, D] of a block; rotated where the block rotates."""

    q: Tensor
    k: Tensor
    v: Tensor


def _has(thing: object, *names: str) -> bool:
    return all(hasattr(thing, name) for name in names)


class Family:
    """One block family. `table`: sin and cos of the patch tokens side by side, [n, 2D] or [B, n, 2D], or None."""

    name = ""
    attention = "attn"
    needs: tuple[str, ...] = ()
    attention_needs: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset({"self", "x"})  # parameters of the block's forward
    folds: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (layer scale, the products that it may scale)

    def fits(self, block: Any) -> bool:
        return _has(block, *self.needs) and _has(getattr(block, self.attention, None), *self.attention_needs)

    def refusal(self, block: Any) -> str | None:
        """Why a block that looks like this family is computed in another way, or None."""
        extra = set(inspect.signature(type(block).forward).parameters) - self.takes
        return f"its forward takes {', '.join(sorted(extra))}" if extra else None

    def table(self, args: tuple, kwargs: dict) -> Tensor | None:
        """The rotation among the arguments of the block's call (after the tokens)."""
        return None

    def call(self, block: Any, x: Tensor, table: Tensor | None) -> Tensor:
        """The block's own forward, without the hooks on it."""
        return block.forward(x)

    def head_width(self, block: Any) -> int:
        raise NotImplementedError

    def heads(self, block: Any, h: Tensor, table: Tensor | None) -> Heads:
        raise NotImplementedError

    def project(self, block: Any, out: Tensor, h: Tensor) -> Tensor:
        """[B, N, H D] after attention, and what went into it -> the attention's output."""
        return block.attn.proj(out)

    def scale(self, block: Any) -> float | None:
        return None

    def first(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        """Residual of the attention."""
        raise NotImplementedError

    def second(self, block: Any, x: Tensor) -> Tensor:
        """The MLP with its residual."""
        raise NotImplementedError

    def attend(self, block: Any, x: Tensor, table: Tensor | None, log_size: Tensor | None) -> tuple[Tensor, Tensor]:
        """x after the attention's residual, and the keys [B, H, N, D]."""
        h = block.norm1(x)
        q, k, v = self.heads(block, h, table)
        out = proportional_attention(q, k, v, log_size, scale=self.scale(block))
        return self.first(block, x, self.project(block, out.transpose(1, 2).flatten(2), h)), k

    def run(self, block: Any, x: Tensor, table: Tensor | None) -> Tensor:
        """The whole block by this description of it."""
        return self.second(block, self.attend(block, x, table, None)[0])


def _fused(attn: Any, qkv: Tensor) -> Heads:
    q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return Heads(q, k, v)


class ViTPose(Family):
    """Blocks of ViTPose, HMR2.0, CameraHMR and SAM 3D Body's ViT-H: no layer scale, positions added before block 0."""

    name = "vitpose"
    needs = ("norm1", "attn", "drop_path", "norm2", "mlp")
    attention_needs = ("qkv", "proj", "scale", "num_heads")

    def fits(self, block: Any) -> bool:
        return super().fits(block) and not hasattr(block, "ls1") and not hasattr(block, "gamma_1")

    def head_width(self, block: Any) -> int:
        return block.attn.qkv.out_features // 3 // block.attn.num_heads

    def heads(self, block: Any, h: Tensor, table: Tensor | None) -> Heads:
        return _fused(block.attn, block.attn.qkv(h))

    def scale(self, block: Any) -> float | None:
        return float(block.attn.scale)

    def first(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return x + block.drop_path(out)

    def second(self, block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path(block.mlp(block.norm2(x)))


class DINOv3(Family):
    """Blocks of the dinov3 repository: rotary positions as (sin, cos), layer scale, a qkv product that masks its own
    bias."""

    name = "dinov3"
    needs = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")
    attention_needs = ("qkv", "proj", "apply_rope", "num_heads")
    takes = frozenset({"self", "x_or_x_list", "x", "rope_or_rope_list", "rope"})
    folds = (("ls1.gamma", ("attn.proj",)), ("ls2.gamma", ("mlp.w3", "mlp.fc2")))

    def table(self, args: tuple, kwargs: dict) -> Tensor | None:
        rope = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(rope, list):
            raise Refused("accelerate: lists of inputs (several crops in one pass) do not go with token merging")
        return None if rope is None else torch.cat(tuple(rope), -1).float()

    def call(self, block: Any, x: Tensor, table: Tensor | None) -> Tensor:
        return block.forward(x, None if table is None else tuple(table.chunk(2, -1)))

    def head_width(self, block: Any) -> int:
        return block.attn.qkv.out_features // 3 // block.attn.num_heads

    def heads(self, block: Any, h: Tensor, table: Tensor | None) -> Heads:
        q, k, v = _fused(block.attn, block.attn.qkv(h))
        if table is not None:
            sin, cos = (table if table.dim() == 2 else table[:, None]).chunk(2, -1)
            q, k = block.attn.apply_rope(q, k, (sin, cos))
        return Heads(q, k, v)

    def first(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return x + block.ls1(out)

    def second(self, block: Any, x: Tensor) -> Tensor:
        return x + block.ls2(block.mlp(block.norm2(x)))


class Timm(Family):
    """Blocks of timm's VisionTransformer (ViT, DeiT, DINOv2 with and without registers)."""

    name = "timm"
    needs = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
    attention_needs = ("qkv", "q_norm", "k_norm", "proj", "num_heads", "scale")
    takes = frozenset({"self", "x", "attn_mask", "is_causal"})
    folds = (("ls1.gamma", ("attn.proj",)), ("ls2.gamma", ("mlp.fc2",)))

    def table(self, args: tuple, kwargs: dict) -> Tensor | None:
        if any(a is not None and a is not False for a in (*args, *kwargs.values())):
            raise Refused("accelerate: attention masks do not go with token merging")
        return None

    def head_width(self, block: Any) -> int:
        return block.attn.qkv.out_features // 3 // block.attn.num_heads

    def heads(self, block: Any, h: Tensor, table: Tensor | None) -> Heads:
        q, k, v = _fused(block.attn, block.attn.qkv(h))
        return Heads(block.attn.q_norm(q), block.attn.k_norm(k), v)

    def scale(self, block: Any) -> float | None:
        return float(block.attn.scale)

    def project(self, block: Any, out: Tensor, h: Tensor) -> Tensor:
        attn = block.attn
        out = getattr(attn, "norm", nn.Identity())(out)
        if getattr(attn, "gate", None) is not None:
            out = out * attn.gate(h).sigmoid()
        return attn.proj_drop(attn.proj(out))

    def first(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return x + block.drop_path1(block.ls1(out))

    def second(self, block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


class Eva(Family):
    """Blocks of timm's Eva (EVA-02, DINOv3, Perception Encoder): rotary positions as one tensor [sin, cos]."""

    name = "eva"
    needs = ("norm1", "attn", "gamma_1", "drop_path1", "norm2", "mlp", "gamma_2", "drop_path2")
    attention_needs = ("num_heads", "num_prefix_tokens", "q_norm", "k_norm", "proj", "scale")
    takes = frozenset({"self", "x", "rope", "attn_mask", "is_causal"})
    folds = (("gamma_1", ("attn.proj",)), ("gamma_2", ("mlp.fc2", "mlp.w3")))

    def refusal(self, block: Any) -> str | None:
        if getattr(block.attn, "num_kv_groups", 1) != 1:
            return "its attention groups queries (fewer keys than queries)"
        return super().refusal(block)

    def table(self, args: tuple, kwargs: dict) -> Tensor | None:
        given = dict(zip(("rope", "attn_mask", "is_causal"), args)) | kwargs
        if given.get("attn_mask") is not None or given.get("is_causal"):
            raise Refused("accelerate: attention masks do not go with token merging")
        rope = given.get("rope")
        if rope is not None and rope.dim() != 2:
            raise Refused("accelerate: positions that differ between heads or blocks (mixed RoPE) cannot be merged")
        return rope

    def call(self, block: Any, x: Tensor, table: Tensor | None) -> Tensor:
        return block.forward(x, table)

    def head_width(self, block: Any) -> int:
        return int(block.attn.head_dim)

    def heads(self, block: Any, h: Tensor, table: Tensor | None) -> Heads:
        attn = block.attn
        if attn.qkv is None:
            parts = [getattr(attn, f"{n}_proj")(h).unflatten(-1, (attn.num_heads, -1)) for n in "qkv"]
            q, k, v = (p.transpose(1, 2) for p in parts)
        else:
            if getattr(attn, "q_bias", None) is None:
                qkv = attn.qkv(h)
            else:
                qkv = F.linear(h, attn.qkv.weight, torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)))
            q, k, v = _fused(attn, qkv)
        q, k = attn.q_norm(q), attn.k_norm(k)
        if table is not None:
            from timm.layers import apply_rot_embed_cat

            rope = table if table.dim() == 2 else table[:, None]
            n, half = attn.num_prefix_tokens, getattr(attn, "rotate_half", False)
            q, k = (
                torch.cat((t[:, :, :n], apply_rot_embed_cat(t[:, :, n:], rope, half=half)), 2).type_as(v)
                for t in (q, k)
            )
        return Heads(q, k, v)

    def scale(self, block: Any) -> float | None:
        return float(block.attn.scale)

    def project(self, block: Any, out: Tensor, h: Tensor) -> Tensor:
        attn = block.attn
        out = attn.norm(out)
        if getattr(attn, "gate", None) is not None:
            out = out * attn.gate(h).sigmoid()
        return attn.proj_drop(attn.proj(out))

    def first(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return x + block.drop_path1(out if block.gamma_1 is None else block.gamma_1 * out)

    def second(self, block: Any, x: Tensor) -> Tensor:
        out = block.mlp(block.norm2(x))
        return x + block.drop_path2(out if block.gamma_2 is None else block.gamma_2 * out)


class Transformers(Family):
    """Blocks of transformers' Dinov2 and DINOv3 models: separate projections, positions as (cos, sin)."""

    name = "transformers"
    attention = "attention"
    needs = ("norm1", "attention", "layer_scale1", "drop_path", "norm2", "mlp", "layer_scale2")
    attention_needs = ("q_proj", "k_proj", "v_proj", "o_proj", "scaling")
    takes = frozenset({"self", "hidden_states", "attention_mask", "position_embeddings", "kwargs", "args"})
    folds = (
        ("layer_scale1.lambda1", ("attention.o_proj",)),
        ("layer_scale2.lambda1", ("mlp.fc2", "mlp.down_proj", "mlp.weights_out")),
    )

    def table(self, args: tuple, kwargs: dict) -> Tensor | None:
        if any(a is not None for a in args) or kwargs.get("attention_mask") is not None:
            raise Refused("accelerate: attention masks do not go with token merging")
        rope = kwargs.get("position_embeddings")
        return None if rope is None else torch.cat((rope[1], rope[0]), -1).float()

    def call(self, block: Any, x: Tensor, table: Tensor | None) -> Tensor:
        if table is None:
            return block.forward(x)
        sin, cos = table.to(x.dtype).chunk(2, -1)
        return block.forward(x, position_embeddings=(cos, sin))

    def head_width(self, block: Any) -> int:
        return int(block.attention.head_dim)

    def heads(self, block: Any, h: Tensor, table: Tensor | None) -> Heads:
        attn = block.attention
        width = attn.head_dim
        q, k, v = (getattr(attn, f"{n}_proj")(h).unflatten(-1, (-1, width)).transpose(1, 2) for n in "qkv")
        if table is not None:
            sin, cos = (table if table.dim() == 2 else table[:, None]).to(q.dtype).chunk(2, -1)
            q, k = _rotate(q, sin, cos), _rotate(k, sin, cos)
        return Heads(q, k, v)

    def scale(self, block: Any) -> float | None:
        return float(block.attention.scaling)

    def project(self, block: Any, out: Tensor, h: Tensor) -> Tensor:
        return block.attention.o_proj(out)

    def first(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale1(out)) + x

    def second(self, block: Any, x: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale2(block.mlp(block.norm2(x)))) + x


def _rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Half-split rotation of the last sin.shape[-2] tokens of x [B, H, N, D]."""
    front, patches = x.split((x.shape[-2] - sin.shape[-2], sin.shape[-2]), -2)
    low, high = patches.chunk(2, -1)
    return torch.cat((front, patches * cos + torch.cat((-high, low), -1) * sin), -2)


FAMILIES: tuple[Family, ...] = (DINOv3(), Timm(), Eva(), Transformers(), ViTPose())


def family_of(blocks: Any) -> Family:
    """The family of a stack's blocks.

    Raises:
        Refused: no known family, blocks of different kinds, or a block that computes something else.
    """
    for family in FAMILIES:
        if all(family.fits(b) for b in blocks):
            for i, block in enumerate(blocks):
                if reason := family.refusal(block):
                    raise Refused(
                        f"accelerate: block {i} ({type(block).__name__}) looks like {family.name}, but {reason}"
                    )
            return family
    raise Refused(
        f"accelerate: blocks {type(blocks[0]).__name__} are of no known family (dinov3, ViTPose/HMR2, timm "
        "VisionTransformer or pre-norm Eva, transformers Dinov2/DINOv3)"
    )


@torch.no_grad()
def probe(family: Family, blocks: Any, prefix: int, rotary: bool) -> None:
    """Runs every block by itself and by its family's description on random tokens.

    Raises:
        Refused: they differ by more than 1e-5 of the largest value (5e-3 in 16 bits).
    """
    rng = torch.Generator().manual_seed(0)
    for i, block in enumerate(blocks):
        weight = next(p for p in block.parameters() if p.is_floating_point())
        width = block.norm1.weight.shape[0]
        x = torch.randn(2, prefix + 12, width, generator=rng).to(weight)
        table = None
        if rotary:
            angle = torch.randn(12, family.head_width(block), generator=rng).to(weight.device)
            half = angle[:, : angle.shape[1] // 2]
            angle = torch.cat((half, half), 1)  # as the half-split rotation has it; other layouts rotate alike in both
            table = torch.cat((angle.sin(), angle.cos()), 1)
        want, got = family.call(block, x, table), family.run(block, x, table)
        allowed = 1e-5 if weight.dtype in (torch.float32, torch.float64) else 5e-3
        error = float((got.float() - want.float()).abs().max() / want.float().abs().max().clamp_min(1e-12))
        if not error <= allowed:
            raise Refused(
                f"accelerate: block {i} ({type(block).__name__}) computes something that the adapter {family.name!r} "
                f"does not know (outputs differ by {error:.1e} of the largest)"
            )
