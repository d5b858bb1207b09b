"""The loader of golden cases copes with other sizes than those at hand: cases of our own making in the same format.

Their outputs come from our models, so they say nothing about the models' numbers (tests/test_conformance.py does); they
say that batch sizes, F, f, n, k, heads, depths, widths, grids and image sizes of a further case reach the model.
"""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from conformance import recipe
from conformance.case import Case
from test_conformance import find_runner

from tore_fast.models import create_model
from tore_fast.models.lifting._base import center_pose


def write_case(folder, model: str, config: dict, net, inputs: dict[str, tuple[int, ...]], run) -> Case:
    """Recipe weights into `net`, recipe inputs, `run(net, inputs)` as the stored outputs."""
    state = net.state_dict()
    net.load_state_dict({k: torch.from_numpy(np.array(recipe.weight(k, v.shape))) for k, v in state.items()})
    tensors = {k: torch.from_numpy(recipe.tensor(k, shape)) for k, shape in inputs.items()}
    with torch.no_grad():
        outputs = run(net.eval(), tensors)
    meta = {
        "model": model,
        "config": config,
        "state_dict": {k: list(v.shape) for k, v in state.items()},
        "inputs": {k: {"shape": list(shape), "recipe": f"tensor({k!r}, {list(shape)})"} for k, shape in inputs.items()},
        "notes": "",
    }
    (folder / "case.json").write_text(json.dumps(meta))
    np.savez(folder / "case.npz", **{k: v.numpy() for k, v in outputs.items()})
    return Case(folder / "case.json")


LIFT = {  # registered name, our fields, the upstream project's config, batch
    "mixste F9": (
        "mixste_9",
        dict(frames=9, channels=32, depth=3, heads=2, mlp_hidden=64),
        dict(frames=9, channel=32, d_hid=64, depth=3, heads=2),
        3,
    ),
    "mixste even F": (
        "mixste_9",
        dict(frames=16, channels=48, depth=1, heads=3, mlp_hidden=96),
        dict(frames=16, channel=48, d_hid=96, depth=1, heads=3),
        1,
    ),
    "hot mixste": (
        "hot_mixste_27",
        dict(frames=21, channels=32, depth=4, heads=4, mlp_hidden=64, keep_frames=5, prune_block=2, knn=3),
        dict(frames=21, token_num=5, layer_index=2, channel=32, depth=4, heads=4, knn_k=3),
        2,
    ),
    "hot mixste last block": (
        "hot_mixste_27",
        dict(frames=9, channels=32, depth=3, heads=8, mlp_hidden=64, keep_frames=4, prune_block=2, knn=1),
        dict(frames=9, token_num=4, layer_index=2, channel=32, depth=3, heads=8, knn_k=1, center=None),
        1,
    ),
    "tpc mixste": (
        "tpc_mixste_27",
        dict(frames=15, channels=32, depth=3, heads=4, mlp_hidden=64, keep_frames=1, prune_block=1),
        dict(frames=15, token_num=1, layer_index=1, channel=32, depth=3, heads=4, knn_k=2, center=7),
        2,
    ),
    "motionbert": (
        "motionbert_lite_27",
        dict(frames=12, max_frames=20, channels=32, rep_channels=24, depth=2, heads=4, mlp_hidden=40),
        dict(frames=12, maxlen=20, dim_feat=32, mlp_hidden=40, dim_rep=24, depth=2, heads=4),
        2,
    ),
    "hot motionbert": (
        "hot_motionbert_27",
        dict(
            frames=10,
            max_frames=10,
            channels=32,
            rep_channels=24,
            depth=3,
            heads=2,
            mlp_hidden=64,
            keep_frames=3,
            prune_block=2,
        ),
        dict(frames=10, token_num=3, layer_index=2, dim_feat=32, mlp_hidden=64, dim_rep=24, depth=3, heads=2, knn_k=2),
        3,
    ),
    "mhformer": (
        "mhformer_27",
        dict(frames=18, channels=32, layers=2, heads=4, mlp_hidden=48),
        dict(frames=18, channel=32, d_hid=48, layers=2, heads=4),
        2,
    ),
    "tpc mhformer": (
        "tpc_mhformer_27",
        dict(frames=27, channels=32, layers=4, heads=2, mlp_hidden=48, keep_frames=4, prune_block=1),
        dict(frames=27, token_num=4, layer_index=1, channel=32, d_hid=48, layers=4, heads=2, knn_k=2, center=13),
        1,
    ),
    "hot motionagformer": (
        "hot_motionagformer_27",
        dict(frames=9, channels=32, rep_channels=24, depth=4, heads=4, keep_frames=4, prune_block=3),
        dict(frames=9, token_num=4, layer_index=3, dim_feat=32, dim_rep=24, n_layers=4, num_heads=4, knn_k=2),
        2,
    ),
}


@pytest.mark.parametrize("kind", LIFT)
def test_pose_lifting(kind, tmp_path):
    name, fields, config, batch = LIFT[kind]
    torch.manual_seed(1)
    net = create_model(name, **fields)
    inputs = {"input.x": (batch, fields["frames"], 17, net.in_channels)}
    if net.config.pruned:
        inputs["input.tpc_noise"] = (batch, fields["frames"])

    def run(net, tensors):
        out = net(tensors["input.x"], density_noise=tensors.get("input.tpc_noise"))
        centred = {"output_center": center_pose(out, fields["frames"])} if config.get("center") is not None else {}
        return {"output": out.pose, **({} if out.index is None else {"index": out.index}), **centred}

    word = next(w for w in ("mixste", "motionbert", "mhformer", "motionagformer") if w in name)
    case = write_case(tmp_path, f"model.{word}.{name.rsplit('_', 1)[0]}.Model", config, net, inputs, run)
    find_runner(case)(case)


MESH = {  # our fields, the upstream config, rows and columns of the features, batch
    "fastmetro narrow": (
        "fastmetro_s_r50",
        dict(dim_1=64, dim_2=32, feedforward_1=48, feedforward_2=40, heads=4),
        dict(model_dim_1=64, model_dim_2=32, feedforward_dim_1=48, feedforward_dim_2=40, transformer_nhead=4),
        (7, 7),
        1,
    ),
    "fastmetro wide image": (
        "fastmetro_m_r50",
        dict(dim_1=64, dim_2=32, feedforward_1=48, feedforward_2=40, heads=8, image_size=(256, 192)),
        dict(model_dim_1=64, model_dim_2=32, feedforward_dim_1=48, feedforward_dim_2=40),
        (8, 6),
        2,
    ),
    "tore keep 0.5": (
        "fastmetro_tore_s_r50",
        dict(
            dim_1=64,
            dim_2=32,
            dim_3=32,
            feedforward_1=48,
            feedforward_2=40,
            feedforward_3=40,
            keep_ratio=0.5,
            selector_dim=16,
        ),
        dict(
            model_dim_1=64,
            model_dim_2=32,
            model_dim_3=32,
            feedforward_dim_1=48,
            feedforward_dim_2=40,
            feedforward_dim_3=40,
            keep_ratio=0.5,
        ),
        (7, 7),
        3,
    ),
    "tore on 6 x 8": (
        "fastmetro_tore_s_r50",
        dict(
            dim_1=64,
            dim_2=32,
            dim_3=32,
            feedforward_1=48,
            feedforward_2=40,
            feedforward_3=40,
            keep_ratio=0.25,
            image_size=(192, 256),
        ),
        dict(
            model_dim_1=64,
            model_dim_2=32,
            model_dim_3=32,
            feedforward_dim_1=48,
            feedforward_dim_2=40,
            feedforward_dim_3=40,
        ),
        (6, 8),
        1,
    ),
}


@pytest.mark.parametrize("kind", MESH)
def test_image_to_mesh(kind, tmp_path, mesh_data):
    name, fields, config, grid, batch = MESH[kind]
    net = create_model(name, backbone=None, feature_dim=40, mesh="smpl", mesh_data=mesh_data, **fields)
    config = {"conv_1x1_dim": 40, **config}

    def run(net, tensors):
        out = net(tensors["input.features"])
        return {"pred_cam": out.camera, "pred_3d_joints": out.joints, "pred_3d_vertices_fine": out.vertices}

    label = "FastMETRO_Body_Network" + (" (TORE: GTR+ITP)" if "tore" in name else "")
    case = write_case(tmp_path, label, config, net, {"input.features": (batch, 40, *grid)}, run)
    case = Case(case.path, mesh_data)
    find_runner(case)(case)


def test_a_case_of_which_nothing_is_compared_fails(tmp_path, request):
    from conformance import smpl
    from test_conformance import test_golden

    net = smpl.ViT(smpl.ViTConfig(img_size=(32, 48), embed_dim=32, depth=1, num_heads=2))
    config = dict(img_size=[32, 48], patch_size=16, embed_dim=32, depth=1, num_heads=2, mlp_ratio=4, qkv_bias=True)
    for name, fails in (("features", False), ("misspelt", True)):
        case = write_case(
            tmp_path,
            "hmr2.models.backbones.vit.ViT",
            config,
            net,
            {"img": (3, 3, 32, 48)},
            lambda net, t, name=name: {name: net(t["img"])},
        )
        with pytest.raises(AssertionError, match="nothing was compared") if fails else contextlib.nullcontext():
            test_golden(case.path, request)


def test_an_array_of_another_shape_is_not_passed_over(tmp_path):
    name, fields, config, batch = LIFT["mixste F9"]
    net = create_model(name, **fields)
    case = write_case(
        tmp_path,
        "model.mixste.mixste.Model",
        config,
        net,
        {"input.x": (batch, 9, 17, 2)},
        lambda net, t: {"output": net(t["input.x"]).pose[:, :1]},
    )
    with pytest.raises(AssertionError, match="output has shape"):
        find_runner(case)(case)


@pytest.mark.parametrize(
    ("name", "fields", "runner"),
    [
        ("motionbert_lite_27", dict(frames=9, channels=32, depth=1, heads=2, mlp_hidden=64), "run_host"),
        ("mixste_9", dict(frames=9, channels=32, depth=1, heads=2, mlp_hidden=64), "run_host"),
        ("tcformer_light", dict(depths=(1, 1, 1, 1)), "run_tcformer"),
    ],
)
def test_the_keys_choose_the_runner_whatever_the_case_is_called(tmp_path, name, fields, runner):
    shapes = {k: list(v.shape) for k, v in create_model(name, **fields).state_dict().items()}
    (tmp_path / "case.json").write_text(json.dumps({"model": "some.lib.Net", "config": {}, "state_dict": shapes}))
    assert find_runner(Case(tmp_path / "case.json")).__name__ == runner


def test_a_window_shorter_than_the_embeddings_runs_under_any_name(tmp_path):
    """MotionBERT's own files: temp_embed of 12 frames, a clip of 7, and a class name that tells nothing."""
    net = create_model("motionbert_lite_27", frames=7, max_frames=12, channels=32, depth=2, heads=2, mlp_hidden=64)
    config = dict(frames=7, maxlen=12, dim_feat=32, mlp_hidden=64, depth=2, heads=2)
    run = lambda net, inputs: {"output": net(inputs["x"]).pose}
    case = write_case(tmp_path, "lib.Net", config, net, {"x": (2, 7, 17, 3)}, run)
    find_runner(case)(case)
