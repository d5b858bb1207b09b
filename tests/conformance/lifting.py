"""Runners for the video pose goldens: any host, F, n, f, k, driven by the case's model, config and key shapes."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from conformance import recipe
from tore_fast.layers.tpc import FrameSelection
from tore_fast.models.lifting._base import center_pose
from tore_fast.models.lifting.layouts import SIGNATURE_KEY, detect_host, model_from_state
from tore_fast.ops.reference.dpc_knn_cluster import dpc_knn_cluster_reference

FIELD_OF = {
    "frames": "frames",
    "token_num": "keep_frames",
    "layer_index": "prune_block",
    "channel": "channels",
    "dim_feat": "channels",
    "d_hid": "mlp_hidden",
    "mlp_hidden": "mlp_hidden",
    "dim_rep": "rep_channels",
    "depth": "depth",
    "n_layers": "depth",
    "layers": "layers",
    "heads": "heads",
    "num_heads": "heads",
    "knn_k": "knn",
    "k": "knn",
    "maxlen": "max_frames",
}
STATISTICS = ("density", "delta", "score")
OFFICIAL_ULPS = 8  # float32 roundings of |x|^2 in a distance that comes from a matrix product
DRIFT = 2e-5  # relative: the pooled tokens themselves come out of float32 blocks
RTOL = 1e-4  # of the largest magnitude; float32 and float64 references agree to 2.3e-6


def runner(case):
    model, keys = case.model.lower(), case.meta.get("state_dict") or {}
    if any(key in keys for key in SIGNATURE_KEY.values()):  # whatever the case calls its network
        return run_host
    if {"linear_q.weight", "linear_k.weight", "linear_v.weight", "proj.weight"} <= set(keys):
        return run_tra
    if model == "losses and metrics" or case.path.stem == "losses_metrics":
        return run_losses
    if "table" in case.meta and "hunked" in str(case.meta.get("source", "")):
        return run_chunking
    return None


def near(case, name: str, got: torch.Tensor, rtol: float = RTOL) -> None:
    case.close(name, got, atol=rtol * max(float(np.abs(case.arrays[name]).max()), 1e-3))


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
    fields["keep_center"] = case.config.get("center") is not None or "tpc_" in case.model
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
    if any(f"tpc_{name}" in arrays for name in STATISTICS):
        check_statistics(case, model, taps.pooled, selection, noise)
    if "tpc_pooled" in arrays:
        near(case, "tpc_pooled", taps.pooled)
    checked = {"output", "index", "output_center", "tpc_density", "tpc_delta", "tpc_score", "tpc_pooled"}
    # cluster ids are computed upstream and never used: frames are dropped, not merged
    left = set(arrays) - checked - {"tpc_idx_cluster"} - taps.check(case)
    assert not left, f"{case.path.name}: stored arrays nobody compared: {sorted(left)}"


def check_statistics(case, model, pooled: torch.Tensor, selection: FrameSelection, noise: torch.Tensor | None) -> None:
    """TPC's density, delta and score: ours against float64 on the same tokens, the stored ones to what they can have.

    The official distances are |x|^2 + |y|^2 - 2 x.y in float32: their squares are right to a few eps |x|^2. That is a
    small share of a large distance and a large share of the one between frames that nearly repeat.
    """
    config = model.config
    excluded = None
    if config.keep_center:
        excluded = torch.zeros(pooled.shape[:2], dtype=torch.bool)
        excluded[:, config.frames // 2] = True
    wide = None if noise is None else noise.double()
    chosen = config.keep_frames - bool(config.keep_center)
    exact = dpc_knn_cluster_reference(pooled.double(), chosen, config.knn, exclude=excluded, noise=wide)
    exact = dict(zip(STATISTICS, exact[2:]))
    square = pooled.double().square().mean(-1).amax() * np.finfo(np.float32).eps * OFFICIAL_ULPS
    relative = square / (2 * exact["delta"].square())  # of delta: half of that of its square
    room = {
        "density": exact["density"] * square,
        "delta": exact["delta"] * relative,
        "score": exact["density"] * exact["delta"] * (square + relative),
    }
    for name, value in exact.items():
        ours = getattr(selection, name).double()
        np.testing.assert_allclose(ours, value, rtol=5e-6, atol=1e-9, err_msg=f"{case.path.name}: {name} v float64")
        if f"tpc_{name}" not in case.arrays:
            continue
        stored = case.stored(f"tpc_{name}").double()
        finite = value.isfinite()
        assert torch.equal(stored.isfinite(), finite), f"{case.path.name}: tpc_{name} is finite elsewhere"
        off = (stored - value).abs()[finite]
        # the stored tokens went through other kernels: equal to RTOL of a delta, and exact nowhere
        bound = (room[name] + DRIFT * value.abs())[finite]
        worst = int((off / bound).argmax())
        assert bool((off <= bound).all()), (
            f"{case.path.name}: tpc_{name} stored {stored[finite][worst]:.9g}, float64 {value[finite][worst]:.9g}, "
            f"off by {off[worst]:.2e}, the stored value can be off by {bound[worst]:.2e}"
        )


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
                flat = out.double()
                stat = torch.stack([flat.mean(), flat.std(correction=0), flat.min(), flat.max()]).float()
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
        layer.prepare()
        torch.testing.assert_close(layer(x, x_token), got, rtol=0, atol=0)
    got = got.transpose(1, 2).flatten(0, 1)
    want = case.arrays["output_slice"]
    np.testing.assert_allclose(got[tuple(slice(0, n) for n in want.shape)], want, atol=2e-5, rtol=1e-5)


def run_losses(case) -> None:
    from tore_fast.data import cameras
    from tore_fast.eval import pose as metrics
    from tore_fast.train import pose_losses as losses

    shape = (2, 27, 17, 3)
    pred = (np.float32(0.3) * recipe.tensor("input.pred", shape)).astype(np.float32)
    noise = (np.float32(0.3) * recipe.tensor("input.target", shape)).astype(np.float32)
    target = (np.float32(0.7) * pred + np.float32(0.3) * noise).astype(np.float32)
    pred[:, :, 0], target[:, :, 0] = 0, 0
    p, g = torch.from_numpy(pred).double(), torch.from_numpy(target).double()
    flat = lambda x: x.reshape(-1, 17, 3)
    errors = case.stored("pck_errors_mm")
    got = {
        "mpjpe": metrics.mpjpe(p, g).mean(),
        "weighted_mpjpe": losses.weighted_mpjpe(p, g),
        "temporal_consistency": losses.temporal_consistency(p),
        "mean_velocity": losses.velocity_error(p, g),
        "mixste_total": losses.mixste_loss(p, g)["total"],
        "n_mpjpe": metrics.n_mpjpe(p, g).mean(),
        "motionbert_velocity": losses.velocity_error(p, g),
        "motionbert_total": losses.motionbert_loss(p, g)["total"],
        "limb_var": losses.limb_variance(p),
        "limb_gt": losses.limb_error(p, g),
        "angle": losses.angle_error(p, g),
        "angle_velocity": losses.angle_velocity_error(p, g),
        "p_mpjpe_mean": metrics.p_mpjpe(p, g).mean(),
        "mixste_n_mpjpe": metrics.n_mpjpe(p, g).mean(),
        "mixste_mpjve_flattened": metrics.mpjve(flat(p), flat(g)).mean(),
        "mpjve_per_clip": metrics.mpjve(p, g).mean(),
        "sym_penalty": losses.symmetry_error(p),
        "bonelen_consistency": losses.bone_consistency(p),
        "pck150_14j": metrics.pck(errors),
        "auc_0_5_150_14j": metrics.auc(errors),
    }
    want = case.meta["scalars"]
    assert set(want) <= set(got), f"scalars nobody computes: {sorted(set(want) - set(got))}"
    for name, value in want.items():
        np.testing.assert_allclose(float(got[name]), value, rtol=2e-6, err_msg=name)
    case.close("p_mpjpe_per_frame", metrics.p_mpjpe(flat(p), flat(g)), atol=1e-6)
    assert list(losses.JOINT_WEIGHTS) == case.config["joint_weights"]

    pixels = (np.float32(200) * recipe.tensor("input.kps", (3, 17, 2)) + np.float32(500)).astype(np.float32)
    for name in (k for k in case.arrays if k.startswith("norm_")):
        width, height = map(int, name.removeprefix("norm_").split("x"))
        case.close(name, torch.from_numpy(cameras.normalise_2d(pixels, width, height)), atol=1e-6)
    world = recipe.tensor("input.world", (2, 17, 3))
    q, t = (np.array(case.meta["inputs"][k], np.float32) for k in "qt")
    case.close("world_to_camera", torch.from_numpy(cameras.world_to_camera(world, q, t)), atol=2e-6)
    # the stored pair is a round trip: camera_to_world takes world_to_camera's result back
    back = case.arrays["world_to_camera"] @ Rotation.from_quat(q, scalar_first=True).as_matrix().T + t
    case.close("camera_to_world", torch.from_numpy(back), atol=2e-6)


def run_chunking(case) -> None:
    from tore_fast.geometry.windows import window_bounds, window_indices

    for row in case.meta["table"]:
        args = row["n"], row["frames"], row["stride"]
        bounds, windows = window_bounds(*args), window_indices(*args)
        stored = len(row["starts"])  # the stride-1 rows list the first targets only
        shown = bounds[:stored] if row["stride"] == 1 else bounds
        assert [b[0] for b in shown] == row["starts"] and [b[1] for b in shown] == row["ends"], row["n"]
        for name, i in (("first_window", 0), ("last_window", -1)):
            if row[name] is not None:
                assert windows[i].tolist() == row[name], (args, name)
