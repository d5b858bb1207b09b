"""Runners for the video pose goldens: any host, F, n, f, k, driven by the case's model, config and key shapes."""

from __future__ import annotations

import numpy as np
import torch

from tore_fast.layers.tpc import FrameSelection
from tore_fast.models.convert.vpt import detect_host, model_from_state
from tore_fast.models.hot import center_pose

HOST_WORDS = ("mixste", "motionbert", "mhformer", "motionagformer")
FIELD_OF = {
    "frames": "frames", "token_num": "keep_frames", "layer_index": "prune_block", "channel": "channels",
    "dim_feat": "channels", "d_hid": "mlp_hidden", "mlp_hidden": "mlp_hidden", "dim_rep": "rep_channels", "depth": "depth",
    "n_layers": "depth", "layers": "layers", "heads": "heads", "num_heads": "heads", "knn_k": "knn", "k": "knn",
    "maxlen": "max_frames",
}  # fmt: skip
RTOL = 1e-4  # of the largest magnitude; float32 and float64 references agree to 2.3e-6


def runner(case):
    model = case.model.lower()
    if model.startswith("tra "):
        return run_tra
    if any(w in model for w in HOST_WORDS):
        return run_host
    if model == "losses and metrics" or case.path.stem == "losses_metrics":
        return run_losses
    if "table" in case.meta and "hunked" in str(case.meta.get("source", "")):
        return run_chunking
    return None


def near(case, name: str, got, rtol: float = RTOL) -> None:
    case.close(name, torch.as_tensor(got), atol=rtol * max(float(np.nanmax(np.abs(np.where(np.isfinite(case.arrays[name]), case.arrays[name], 0)))), 1e-3))


def build(case):
    state = case.state_dict()
    host = detect_host(state)
    fields = {FIELD_OF[k]: v for k, v in case.config.items() if k in FIELD_OF}
    if host != "motionbert":
        fields.pop("max_frames", None)
    if host == "motionbert":
        fields.setdefault("max_frames", state["temp_embed"].shape[1])
    if host == "mhformer":
        fields.pop("heads", None) if fields.get("heads") == 9 else None
        fields.pop("depth", None)
    if host == "motionagformer":
        fields.pop("mlp_hidden", None)
    fields["keep_center"] = "center" in case.config or "tpc_" in case.model
    return model_from_state(state, case.path.name, **fields)


def run_host(case) -> None:
    model = build(case)
    taps = Taps(model)
    noise = case.input("tpc_noise") if any(k.endswith("tpc_noise") for k in case.meta["inputs"]) else None
    with torch.inference_mode():
        got = model(case.input("x"), density_noise=noise)
        again = model(case.input("x"), density_noise=noise)
    assert torch.equal(got.pose, again.pose), "two passes on the same input differ"
    arrays = case.arrays
    if "index" in arrays:
        np.testing.assert_array_equal(got.index.numpy(), arrays["index"])
    near(case, "output", got.pose)
    if "output_center" in arrays:
        near(case, "output_center", center_pose(got, model.config.frames))
    selection = taps.selection
    for name, value in (("density", "density"), ("delta", "delta"), ("score", "score")):
        if f"tpc_{name}" in arrays:
            np.testing.assert_allclose(getattr(selection, value), arrays[f"tpc_{name}"], rtol=2e-4, atol=1e-6)
    if "tpc_pooled" in arrays:
        near(case, "tpc_pooled", taps.pooled)
    checked = {"output", "index", "output_center", "tpc_density", "tpc_delta", "tpc_score", "tpc_pooled"}
    # cluster ids are computed upstream and never used: frames are dropped, not merged
    left = set(arrays) - checked - {"tpc_idx_cluster"} - taps.check(case)
    assert not left, f"{case.path.name}: stored arrays nobody compared: {sorted(left)}"


class Taps:
    """Records, on the first pass, what the case stores of every block: statistics and the slice [0, :3, :8]."""

    def __init__(self, model) -> None:
        self.rows: dict[str, list[torch.Tensor]] = {}
        self.selection: FrameSelection | None = None
        self.calls = 0
        model.register_forward_pre_hook(self._start)
        spatial, temporal = (lambda x: x[0, 0]), (lambda x: x[0, :, 0])
        plain = lambda x: x[0]
        for name, module in model.named_modules():
            last = name.rsplit(".", 1)[-1]
            if name == "selector":
                module.register_forward_hook(self._select)
            elif name == "Spatial_norm":
                self._tap(module, "S", spatial)
            elif name == "Temporal_norm":
                self._tap(module, "T", temporal)
            elif name == "norm" and hasattr(model, "joints_embed"):
                self._tap(module, "norm", spatial)
            elif name.startswith(("blocks_st.", "blocks_ts.")) and last.isdigit():
                self._tap(module, name[7:9], spatial)
            elif name.startswith("layers.") and name.count(".") == 1:
                self._tap(module, "layers", spatial)
            elif name.startswith("Transformer_encoder_") and name.count(".") == 0:
                self._tap(module, "mhg", plain)
            elif last.isdigit() and name.rsplit(".", 2)[-2] in ("SHR_blocks", "CHI_blocks"):
                self._tap(module, name.rsplit(".", 2)[-2][:3].lower(), plain)
            elif name == "Transformer_hypothesis.norm":
                self._tap(module, "hyp", plain)

    def _start(self, *_):
        self.calls += 1

    def _select(self, _, args, out):
        if self.calls == 1:
            self.pooled, self.selection = args[0], out

    def _tap(self, module, key, pick) -> None:
        def hook(_, __, out):
            if self.calls == 1:
                out = out[0] if isinstance(out, list) else out
                stat = torch.stack([out.mean(), out.double().std().to(out), out.min(), out.max()])
                self.rows.setdefault(key, []).append((pick(out)[:3, :8].clone(), stat))

        module.register_forward_hook(hook)

    def check(self, case) -> set[str]:
        done = set()
        for key, rows in self.rows.items():
            for kind, column in (("slice", 0), ("stat", 1)):
                name = f"{kind}_{key}"
                if name in case.arrays:
                    near(case, name, torch.stack([r[column] for r in rows]))
                    done.add(name)
        return done


def run_tra(case) -> None:
    from tore_fast.layers.tra import TokenRecovery

    c = case.config
    layer = TokenRecovery(c["dim"], c["heads"], c.get("qkv_bias", True)).eval()
    layer.load_state_dict(case.state_dict())
    x = case.input("x")  # (b j) f c
    batch, joints = c.get("batch", 1), c["joints"]
    x = x.view(batch, joints, *x.shape[1:]).transpose(1, 2)
    x_token = case.input("x_token")
    with torch.inference_mode():
        got = layer(x, x_token)
        layer.freeze_queries(x_token, joints)
        torch.testing.assert_close(layer(x, x_token), got, rtol=0, atol=0)
    got = got.transpose(1, 2).flatten(0, 1)
    want = case.arrays["output_slice"]
    np.testing.assert_allclose(got[tuple(slice(0, n) for n in want.shape)], want, atol=2e-5, rtol=1e-5)
