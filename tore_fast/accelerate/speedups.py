"""Speed-ups beside merging, each by its name: exact ones (every bit stays) and near-exact ones (rounding, or less work
where it hardly shows).

In: a `Host` and names; out: overrides on the user's own objects. All are written from published interfaces (attribute
names, shapes, formulas) and leave objects alone that look different. The exact ones prove themselves on random input
first where they compute by another formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import measure
from .blocks import Refused
from .hosts import Host
from .overrides import Overrides

EXACT = ("rope_table", "k_bias", "prompt_table", "ray_features")
NEAR = ("correctives", "keypoint_rows", "decoder_autocast", "fov")
KEYPOINTS = 70  # of the 308 rows of SAM 3D Body's key-point map, what its head returns


def chosen(given: Any, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """Names of True (all), False (none) or a sequence.

    Raises:
        ValueError: an unknown name.
    """
    names = known if given is True else () if not given else (given,) if isinstance(given, str) else tuple(given)
    if unknown := set(names) - set(known):
        raise ValueError(f"accelerate: {what} speed-ups are {known}, got {sorted(unknown)}")
    return names


def state_of(*values: Tensor) -> tuple:
    """Tells whether tensors still hold what they held; inference tensors have no version and none is kept of them."""
    return (*((id(t), t._version, t.dtype, t.device) for t in values), torch.is_inference_mode_enabled())


class _Remembered:
    """A module's forward that keeps its result for the last few (arguments, weights) in eval mode."""

    def __init__(self, module: Any, most: int = 8) -> None:
        self.module, self.original, self.most = module, module.forward, most
        self.kept: dict[tuple, Any] = {}

    def __call__(self, **sizes: int) -> Any:
        if self.module.training or torch.compiler.is_compiling():
            return self.original(**sizes)
        state = tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in self.module.buffers())
        state += tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in self.module.parameters())
        key = (tuple(sorted(sizes.items())), state, torch.is_inference_mode_enabled())
        if key not in self.kept:
            if len(self.kept) >= self.most:
                self.kept.clear()
            self.kept[key] = self.original(**sizes)
        return self.kept[key]


class _FoldedBias:
    """A product whose bias is multiplied by a 0/1 buffer in every call, with that done once."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.bias: Tensor | None = None
        self.made_of: tuple = ()

    def __call__(self, x: Tensor) -> Tensor:
        module = self.module
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and module.bias.requires_grad):
            return nn.functional.linear(x, module.weight, module.bias * module.bias_mask.to(module.bias.dtype))
        made_of = state_of(module.bias, module.bias_mask)
        if self.bias is None or self.made_of != made_of:
            self.bias, self.made_of = module.bias * module.bias_mask.to(module.bias.dtype), made_of
        return nn.functional.linear(x, module.weight, self.bias)


class _PromptTable:
    """Key points as prompts by one table [not there, no point, joint 0, ...] in place of one masked write, and on CUDA
    one wait, for every joint."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.table: Tensor | None = None
        self.made_of: tuple = ()

    def rows(self) -> Tensor:
        e = self.encoder
        weights = [e.invalid_point_embed.weight, e.not_a_point_embed.weight, *(p.weight for p in e.point_embeddings)]
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            return torch.cat((*weights, torch.zeros_like(weights[0])))
        made_of = state_of(*weights)
        if self.table is None or self.made_of != made_of:
            self.table, self.made_of = torch.cat((*weights, torch.zeros_like(weights[0]))), made_of
        return self.table

    def __call__(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not points.is_cuda and points.numel() and not (points.min() >= 0 and points.max() <= 1):
            raise AssertionError("points must be in 0..1")  # the original asserts it too, on CUDA with two waits
        table, place = self.rows(), self.encoder.pe_layer._pe_encoding(points.float())
        bare = (labels == -1) | (labels == -2)
        known = (labels >= -2) & (labels < len(table) - 3) & (labels == labels.round())
        row = torch.where(known, labels + 2, torch.full_like(labels, len(table) - 1)).long()
        return torch.where(bare[..., None], torch.zeros_like(place), place) + table[row], labels > -2


class _RayFeatures:
    """Fourier features [B, N, 3 + 2 * 3 * bands] of rays for the whole batch at once."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, pos: Tensor) -> Tensor:
        m = self.module
        bands = [torch.linspace(1.0, res / 2, m.num_bands, device=pos.device) for res in m.max_resolution]
        angle = torch.pi * (pos[..., None] * torch.stack(bands)).flatten(2)
        return torch.cat((pos, angle.sin(), angle.cos()), -1)


class _Run:
    """One run of a decoder: how many body models it has asked for."""

    def __init__(self) -> None:
        self.on, self.calls, self.last = False, 0, 0


class _LateCorrectives:
    """The body model; inside a decoder run it leaves the pose correctives to the last call."""

    def __init__(self, body: Any, run: _Run) -> None:
        self.body, self.run = body, run

    def __getattr__(self, name: str) -> Any:
        if name in ("body", "run"):  # not there yet while a copy is made
            raise AttributeError(name)
        return getattr(self.body, name)

    def __call__(self, shape: Tensor, model: Tensor, expression: Tensor | None = None) -> Any:
        run = self.run
        run.calls += 1
        return self.body(shape, model, expression, not run.on or run.calls >= run.last)


class _DecoderRun:
    """`forward_decoder` or its twin for hands, with its body models counted."""

    def __init__(self, original: Any, decoder: Any, run: _Run) -> None:
        self.original, self.decoder, self.run = original, decoder, run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self.run
        run.on, run.calls, run.last = True, 0, len(self.decoder.layers)
        try:
            out = self.original(*args, **kwargs)
        finally:
            run.on = False
        if run.calls != run.last:
            raise Refused(
                f"accelerate: 'correctives' expects one body model per decoder layer ({run.last}), there were "
                f"{run.calls}"
            )
        return out


class _Rows:
    """The rows of a matrix that are used, for `self.keypoint_mapping @ x`."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.module._parameters["keypoint_mapping"][:KEYPOINTS] @ x


class Autocast:
    """A module's forward under autocast; float32 comes back."""

    def __init__(self, original: Any, device: str, dtype: torch.dtype | None) -> None:
        self.original, self.device, self.dtype = original, device, dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.dtype is None:
            return self.original(*args, **kwargs)
        with torch.autocast(self.device, self.dtype):
            out = self.original(*args, **kwargs)
        return measure.mapped(out, lambda t: t.float() if t.dtype == self.dtype else t)


class FirstCamera:
    """The field of view of the first frame of every image size, until `forget`."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.kept: dict[tuple, Any] = {}

    def __call__(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        key = tuple(image.shape)
        if key not in self.kept:
            self.kept[key] = self.original(image, *args, **kwargs)
        return self.kept[key]

    def forget(self) -> None:
        self.kept.clear()


def _has(thing: Any, *names: str) -> bool:
    return all(getattr(thing, n, None) is not None for n in names)


def exact(host: Host, names: tuple[str, ...], puts: Overrides) -> None:
    """Exact speed-ups, where the object has what they are for.

    "rope_table": the rotation table of a grid is computed once instead of before every block. "k_bias": the masked bias
    of the qkv product is folded once. "prompt_table", "ray_features": SAM 3D Body's key-point prompts and ray features
    without loops.
    """
    model = host.model
    rope = getattr(host.vit, "rope_embed", None) or getattr(host.owner, "rope_embed", None)  # SAM 3D Body wraps the ViT
    if "rope_table" in names and isinstance(rope, nn.Module):
        puts.put(rope, "forward", _Remembered(rope), "rope_table")
    if "k_bias" in names and host.family is not None and host.family.name == "dinov3":
        for block in host.blocks:
            qkv = block.attn.qkv
            if isinstance(getattr(qkv, "bias_mask", None), Tensor) and qkv.bias is not None:
                puts.put(qkv, "forward", _FoldedBias(qkv), "k_bias")
    encoder = getattr(model, "prompt_encoder", None)
    parts = ("_embed_keypoints", "point_embeddings", "not_a_point_embed", "invalid_point_embed", "pe_layer")
    if "prompt_table" in names and _has(encoder, *parts) and _same_prompts(encoder):
        puts.put(encoder, "_embed_keypoints", _PromptTable(encoder), "prompt_table")
    for name in ("ray_cond_emb", "ray_cond_emb_hand"):
        camera = getattr(getattr(model, name, None), "camera", None)
        if "ray_features" in names and _has(camera, "num_bands", "max_resolution") and _same_rays(camera):
            puts.put(camera, "forward", _RayFeatures(camera), "ray_features")


@torch.no_grad()
def _same_prompts(encoder: Any) -> bool:
    weight = encoder.invalid_point_embed.weight
    joints = len(encoder.point_embeddings)
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(1, joints + 2, 2, generator=rng).to(weight)
    labels = torch.arange(-2, joints).to(weight)[None]
    want, got = encoder._embed_keypoints(points, labels), _PromptTable(encoder)(points, labels)
    return all(torch.equal(a, b) for a, b in zip(want, got))


@torch.no_grad()
def _same_rays(camera: Any) -> bool:
    pos = torch.rand(2, 5, len(camera.max_resolution), generator=torch.Generator().manual_seed(0))
    return torch.equal(camera(pos), _RayFeatures(camera)(pos))


def near_exact(host: Host, names: tuple[str, ...], puts: Overrides) -> None:
    """Near-exact speed-ups of SAM 3D Body.

    "correctives": the body model's pose correctives only in the last of the predictions of a decoder run and after it;
    "keypoint_rows": 70 of the 308 rows of its key-point map; "decoder_autocast": layers of the decoders in the ViT's
    16-bit dtype (bfloat16 for a float32 ViT); "fov": the first camera of a clip for all of its frames.

    Raises:
        Refused: the object lacks what a named one is for.
    """
    model: Any = host.model
    if "correctives" in names:
        found = False
        for head, decoder, run_of in (
            ("head_pose", "decoder", "forward_decoder"),
            ("head_pose_hand", "decoder_hand", "forward_decoder_hand"),
        ):
            part: Any = getattr(model, head, None)
            layers: Any = getattr(model, decoder, None)
            if not _has(part, "mhr") or not _has(layers, "layers") or not _has(model, run_of):
                continue
            if not _takes_switch(part.mhr):
                raise Refused("accelerate: 'correctives' needs a body model with a switch for them (a fourth argument)")
            run = _Run()
            puts.put(part, "mhr", _LateCorrectives(part.mhr, run), "correctives")
            puts.put(model, run_of, _DecoderRun(getattr(model, run_of), layers, run), "correctives")
            found = True
        _need(found, "correctives", "head_pose.mhr and decoder.layers")
    if "keypoint_rows" in names:
        heads: list[Any] = [
            h for h in (getattr(model, n, None) for n in ("head_pose", "head_pose_hand")) if h is not None
        ]
        heads = [h for h in heads if isinstance(getattr(h, "_parameters", {}).get("keypoint_mapping"), Tensor)]
        for head in heads:
            puts.put(head, "keypoint_mapping", _Rows(head), "keypoint_rows")
        _need(heads, "keypoint_rows", "head_pose.keypoint_mapping")
    if "decoder_autocast" in names:
        weight = next(host.vit.parameters())
        dtype = weight.dtype if weight.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
        decoders: list[Any] = [
            d for d in (getattr(model, n, None) for n in ("decoder", "decoder_hand")) if _has(d, "layers")
        ]
        for layer in (layer for d in decoders for layer in d.layers):
            puts.put(layer, "forward", Autocast(layer.forward, weight.device.type, dtype), "decoder_autocast")
        _need(decoders, "decoder_autocast", "decoder.layers")
    if "fov" in names:
        camera = getattr(host.root, "fov_estimator", None)
        _need(_has(camera, "get_cam_intrinsics"), "fov", "an estimator's fov_estimator.get_cam_intrinsics")
        assert camera is not None
        puts.put(camera, "get_cam_intrinsics", FirstCamera(camera.get_cam_intrinsics), "fov")


def _need(found: Any, name: str, what: str) -> None:
    if not found:
        raise Refused(f"accelerate: the speed-up {name!r} is for SAM 3D Body; this object has no {what}")


def _takes_switch(body: Any) -> bool:
    """Whether a body model has an argument after shape, pose and expression."""
    import inspect

    schema = getattr(getattr(body, "forward", None), "schema", None)
    if schema is not None:  # TorchScript
        return len(schema.arguments) >= 5  # with self
    return len(inspect.signature(body.forward).parameters) >= 4
