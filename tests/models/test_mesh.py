"""Image-to-mesh models on a toy mesh: shapes, gradients, shortcuts, attention maps, compile, export, bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tore_fast.benchmarks.baselines import dense_attention
from tore_fast.layers.prepared import Prepared
from tore_fast.models import (
    METRO,
    METRO_TORE,
    FastMETRO,
    FastMETRO_TORE,
    FastMETROConfig,
    FastMETROToreConfig,
    MeshGraphormer,
    MeshGraphormerConfig,
    METROConfig,
    METROToreConfig,
    create_model,
)

from .mesh_tiny import BERT, BUILDERS, JOINTS, METRO_GTR, TORE, TRANSFORMER, VERTICES, tiny_input, tiny_mesh

NAMES = list(BUILDERS)
# every class, selector and kind of mesh once: what compile and export see differs there
FAMILIES = (
    "fastmetro_smpl",
    "fastmetro_attention",
    "tore_cluster",
    "tore_hand",
    "metro_hand",
    "metro_tore_soft",
    "graphormer",
)


def build(name: str):
    return BUILDERS[name]().eval()


def tensors(out) -> dict[str, torch.Tensor]:
    return {k: v for k, v in out._asdict().items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_batch_independence(name):
    model, x = build(name), tiny_input(name, 3)
    out = model(x)
    assert out.camera.shape == (3, 3) and out.joints.shape == (3, JOINTS, 3)
    assert out.vertices_coarse.shape == (3, VERTICES, 3)
    hand = len(model.mesh.ups) == 1
    assert (out.vertices_intermediate is None) == hand
    assert out.vertices.shape == (3, VERTICES * (2 if hand else 4), 3)
    one = model(tuple(t[1:2] for t in x) if isinstance(x, tuple) else x[1:2])
    for key, value in tensors(one).items():
        torch.testing.assert_close(value, getattr(out, key)[1:2], atol=2e-5, rtol=1e-4)
    coarse_only = model(x, fine=False)
    assert coarse_only.vertices is None
    torch.testing.assert_close(coarse_only.vertices_coarse, out.vertices_coarse)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    model = BUILDERS[name]().train()
    out = model(tiny_input(name, 4))
    loss = sum((v * torch.randn_like(v)).sum() for v in tensors(out).values() if v.requires_grad)
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    zero = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.abs().sum() > 0]
    assert not without
    # keys' biases cancel in the softmax; they are the only ones that may stay at zero
    assert not [n for n in zero if not n.endswith((".key.bias", "qk.bias"))]


def terms(model) -> dict[tuple[Prepared, object], object]:
    """What a prepared model keeps beside packed weights: (module, name) -> value."""
    parts = [m for m in model.modules() if isinstance(m, Prepared)]
    return {(m, name): m.packed.peek(name) for m in parts for name in m._recipes}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prepare_changes_nothing_but_the_work(name):
    model, x = build(name).double(), tiny_input(name, 2, torch.float64)
    plain = tensors(model(x))
    prepared = tensors(model.prepare()(x))
    assert terms(model)
    for key, value in plain.items():
        torch.testing.assert_close(prepared[key], value, atol=1e-9, rtol=1e-9)
    again = tensors(model.unprepare()(x))
    assert not terms(model) and all(torch.equal(again[key], value) for key, value in plain.items())
    model.prepare().train()
    assert not terms(model) and not model.prepared
    with pytest.raises(RuntimeError, match="eval"):
        model.prepare()


SHORTCUTS = {  # what one shortcut keeps, and the models that have it
    "constant first decoder self-attention": (("first query",), ("fastmetro", "fastmetro_hand", "tore", "metro_tore")),
    "projected position encodings": (("qkv bias", "kv bias"), ("fastmetro_soft", "tore", "tore_none", "metro_tore")),
    "embedding of image tokens, not of queries": (
        ("embedding", "grid embedding"),
        ("metro", "metro_hand", "metro_cluster", "metro_tore", "graphormer"),
    ),
    "both up-sampling steps as one matrix": (("up-sampling",), ("metro", "metro_tore", "graphormer")),
}


@pytest.mark.parametrize(("shortcut", "name"), [(s, n) for s, (_, names) in SHORTCUTS.items() for n in names])
@torch.no_grad()
def test_each_shortcut_alone_changes_nothing(shortcut, name):
    kept = SHORTCUTS[shortcut][0]
    model, x = build(name).double(), tiny_input(name, 2, torch.float64)
    plain = tensors(model(x))
    model.prepare()
    for module, term in terms(model):
        if term not in kept:
            del module._recipes[term]
    assert {term for _, term in terms(model)} <= set(kept) and terms(model)
    for key, value in tensors(model(x)).items():
        torch.testing.assert_close(value, plain[key], atol=1e-9, rtol=1e-9)
    for value in terms(model).values():  # the shortcut is taken: what it kept decides
        for tensor in value if isinstance(value, tuple) else (value,):
            tensor.mul_(1.5)
    assert not torch.allclose(model(x).vertices, plain["vertices"])


def test_batched_svd_is_that_of_one_matrix_at_a_time():
    from tore_fast.layers.smpl_regressor import nearest_rotation_upstream

    m = torch.randn(2, 24, 3, 3, dtype=torch.float64)
    assert (torch.linalg.det(m) < 0).any()
    batched = nearest_rotation_upstream(m)
    for one, got in zip(m.flatten(0, 1), batched.flatten(0, 1)):
        u, _, v = torch.svd(one)
        r = u @ v.T
        torch.testing.assert_close(got, r * torch.det(r))
    torch.testing.assert_close(torch.linalg.det(batched), torch.ones(2, 24, dtype=torch.float64))


@pytest.mark.parametrize("name", ["fastmetro", "fastmetro_hand", "tore", "metro", "graphormer_hand"])
def test_joints_straight_from_coarse_vertices(name):
    model, x = build(name).double(), tiny_input(name, 2, torch.float64)
    out = model(x)
    regressor = torch.rand(6, out.vertices.shape[1], dtype=torch.float64)
    matrix, bias = model.coarse_joint_regressor(regressor)
    assert matrix.shape == (6, VERTICES)
    torch.testing.assert_close(matrix @ model(x, fine=False).vertices_coarse + bias, regressor @ out.vertices)
    with pytest.raises(ValueError, match="regressor must be"):
        model.coarse_joint_regressor(regressor[:, 1:])


@torch.no_grad()
def test_loading_weights_drops_shortcuts():
    model, other, x = build("tore"), build("tore"), tiny_input("tore")
    model.prepare()
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x).vertices, other(x).vertices)


@pytest.mark.parametrize("name", [*FAMILIES, "fastmetro_smpl", "graphormer_hand"])
def test_weights_of_a_part_changed_after_prepare_are_noticed(name):
    model, other, x = build(name), build(name), tiny_input(name)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1 + 0.2 * torch.rand_like(p))
        model.prepare()(x)
        state = other.state_dict()
        for part, child in model.named_children():
            child.load_state_dict({k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")})
        for own, p in zip(model._parameters.values(), other._parameters.values()):
            own.copy_(p)
        want = other(x)
        torch.testing.assert_close(model(x).vertices, want.vertices, atol=1e-5, rtol=1e-4)
        for p in model.parameters():
            p.mul_(1.1)
        for p in other.parameters():
            p.mul_(1.1)
        torch.testing.assert_close(copy.deepcopy(model)(x).vertices, other(x).vertices, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_prepared_in_inference_mode_and_used_with_gradients(name):
    model, x = build(name), tiny_input(name)
    with torch.inference_mode():
        expected = model.prepare()(x).vertices
    for wanted in (True, False):  # gradients of the weights, or of the input alone: then what is kept is used
        x = tuple(t.detach() for t in x) if isinstance(x, tuple) else x.detach()
        for t in x if isinstance(x, tuple) else (x,):
            t.requires_grad_(not wanted)
        vertices = model.requires_grad_(wanted)(x).vertices
        vertices.sum().backward()
        torch.testing.assert_close(vertices.detach(), expected.clone(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_attention_maps(name):
    model, x = build(name), tiny_input(name)
    out, plain = model(x, return_attention=True), model(x)
    assert plain.attention is None and out.attention
    torch.testing.assert_close(out.vertices, plain.vertices, atol=1e-5, rtol=1e-4)
    for m in out.attention.values():
        assert m.shape[1] == 2
        torch.testing.assert_close(m.sum(-1), torch.ones_like(m.sum(-1)))
    blocked = ~model.mesh.topology(0).dense_mask() if "decoder_3" in out.attention else None
    if blocked is not None:
        assert (out.attention["decoder_3"][..., blocked] == 0).all()


@pytest.mark.parametrize("name", ["fastmetro", "tore", "metro_tore", "graphormer"])
def test_sparse_and_dense_attention_agree(name):
    model, x = build(name), tiny_input(name)
    for fused in (False, True):
        with dense_attention(fused):
            dense = model(x)
        torch.testing.assert_close(model(x).vertices, dense.vertices, atol=1e-5, rtol=1e-4)


def test_dropout_acts_in_training_only():
    model, x = BUILDERS["tore"](), tiny_input("tore")
    model.train()
    assert not torch.equal(model(x).vertices, model(x).vertices)
    model.eval()
    assert torch.equal(model(x).vertices, model(x).vertices)


@pytest.mark.parametrize(("name", "prepared"), [*((n, True) for n in FAMILIES), ("tore", False), ("metro", False)])
def test_compiles_without_breaks(name, prepared):
    model, x = build(name).requires_grad_(False), tiny_input(name)
    plain = tensors(model(x))
    compiled = torch.compile(
        model.prepare() if prepared else model, fullgraph=True, backend="eager" if prepared else "aot_eager"
    )
    for key, value in tensors(compiled(x)).items():
        torch.testing.assert_close(value, plain[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_exports(name):
    model, x = build(name).requires_grad_(False), tiny_input(name)
    program = torch.export.export(model, (x,))
    for key, value in tensors(program.module()(x)).items():
        torch.testing.assert_close(value, tensors(model(x))[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["tore", "metro"])
def test_half_precision_keeps_upsampling_weights(name):
    model = build(name).to(torch.bfloat16)
    if name == "tore":
        assert model.upsample[0].values.dtype == torch.float32
    out = model(tiny_input(name).to(torch.bfloat16))
    assert out.vertices.dtype == torch.float32 and out.vertices.isfinite().all()


def test_query_mask_replaces_whole_vectors():
    model, x = build("metro"), tiny_input("metro")
    mask = torch.ones(2, JOINTS + VERTICES)
    torch.testing.assert_close(model(x, query_mask=mask).vertices, model(x).vertices)
    mask[0] = 0
    out = model(x, query_mask=mask)
    torch.testing.assert_close(out.joints[1], model(x).joints[1], atol=1e-5, rtol=1e-4)
    again = model(torch.randn_like(x), query_mask=mask)
    torch.testing.assert_close(out.joints[0], again.joints[0], atol=1e-5, rtol=1e-4)  # the image is hidden
    with pytest.raises(ValueError, match="query_mask must be"):
        model(x, query_mask=mask[:, :3])


def test_nsr_noise_disturbs_the_mesh_only():
    model, x = build("tore"), tiny_input("tore")
    noisy, plain = model(x, nsr_noise=0.1), model(x)
    assert torch.equal(noisy.joints, plain.joints) and torch.equal(noisy.camera, plain.camera)
    assert not torch.allclose(noisy.vertices, plain.vertices)


HOSTS = {
    "fastmetro": (FastMETRO, FastMETROConfig, TRANSFORMER),
    "tore": (FastMETRO_TORE, FastMETROToreConfig, TORE),
    "metro": (METRO, METROConfig, BERT),
    "metro_tore": (METRO_TORE, METROToreConfig, METRO_GTR),
}


@pytest.mark.parametrize("host", list(HOSTS))
@pytest.mark.parametrize("selector", ["soft", "cluster", "attention", "none"])
def test_selectors_at_the_ratios_of_the_paper(host, selector):
    kind, config, fields = HOSTS[host]
    fields = {**fields, "image_size": 224, "selector_dim": 8, "selector": selector}
    for ratio, kept in ((1.0, 49), (0.8, 39), (0.5, 24), (0.25, 12)):
        model = kind(config(**fields, keep_ratio=ratio), tiny_mesh()).eval()
        heatmap = model(torch.randn(2, 24, 7, 7)).heatmap
        if selector == "none":
            assert heatmap is None and model.keep_num == 49
            continue
        assert model.keep_num == kept and heatmap.shape == (2, kept, 49)
        torch.testing.assert_close(heatmap.sum(-1), torch.ones(2, kept), atol=1e-4, rtol=1e-4)
        if selector == "cluster":  # every cell belongs to one token
            assert ((heatmap > 0).sum(1) == 1).all()
        if selector == "attention":  # tokens are cells, none twice
            assert ((heatmap == 0) | (heatmap == 1)).all() and (heatmap.sum(1) <= 1).all()


def test_no_selection_is_the_plain_model():
    for name in ("fastmetro", "metro"):
        assert "token" not in " ".join(
            k for k in build(name).state_dict() if "token_embed" not in k and "learn_tokens" not in k
        )
    with pytest.raises(ValueError, match="pooled model has no image tokens"):
        METRO(METROConfig(**BERT, pooled=True, selector="soft"), tiny_mesh(2))
    with pytest.raises(ValueError, match="grid tokens are not pruned"):
        MeshGraphormer(MeshGraphormerConfig(**BERT, selector="soft"), tiny_mesh(2))


@pytest.mark.parametrize("name", ["fastmetro", "tore", "metro", "metro_hand", "metro_tore", "graphormer"])
def test_inputs_of_another_shape_or_type(name):
    model, x = build(name), tiny_input(name)
    kind = type(model).__name__
    pair = isinstance(x, tuple)
    with pytest.raises(ValueError, match=rf"{kind}: .*features must be \[B, \d+, 4, 4\].*got \[2, \d+, 4, 5\]"):
        wrong = torch.nn.functional.pad(x[1] if pair else x, (0, 1))
        model((x[0], wrong) if pair else wrong)
    with pytest.raises(TypeError, match=rf"{kind}: .*features must be"):
        model((x[0].int(), x[1]) if pair else x.int())
    with pytest.raises(TypeError, match=f"{kind}: config must be a {kind.replace('_TORE', 'Tore')}Config, got 'r50'"):
        type(model)("r50")


def test_images_of_another_size():
    model = create_model("tore_default")
    for shape in ((1, 3, 224, 224), (1, 112, 112, 3), (3, 112, 112)):
        with pytest.raises(
            ValueError, match=r"FastMETRO_TORE: images must be \[B, 3, 112, 112\] \(normalised.*got \[" + str(shape[0])
        ):
            model(torch.zeros(shape))
    with pytest.raises(TypeError, match="got torch.uint8"):
        model(torch.zeros(1, 3, 112, 112, dtype=torch.uint8))


def test_classes_without_arguments_are_the_published_defaults():
    with torch.device("meta"):
        models = [kind() for kind in (FastMETRO, FastMETRO_TORE, METRO, METRO_TORE, MeshGraphormer)]
        names = ("fastmetro_s_r50", "fastmetro_tore_s_r50", "metro_r50", "metro_tore_r50", "graphormer_h64")
        for model, name in zip(models, names):
            assert model.config == create_model(name).config


def test_any_grid_mesh_and_timm_backbone():
    config = FastMETROToreConfig(
        **{**TORE, "backbone": "resnet18", "feature_dim": 0, "stride": 16, "image_size": (64, 96)}
    )
    model = FastMETRO_TORE(config, tiny_mesh(2))
    assert model.config.feature_dim == 256 and model.grid == (4, 6)
    assert model(torch.randn(2, 3, 64, 96)).vertices.shape == (2, 2 * VERTICES, 3)


def test_default_model_runs():
    model = create_model("tore_default").eval()
    size = model.config.image_size
    assert model(torch.randn(1, 3, size, size)).vertices.shape == (1, 6890, 3)


def test_bad_input_is_one_clear_error():
    with pytest.raises(ValueError, match="selector must be one of"):
        FastMETRO_TORE(FastMETROToreConfig(**TORE, selector="best"), tiny_mesh())
    with pytest.raises(ValueError, match="keep_ratio"):
        FastMETRO_TORE(FastMETROToreConfig(**TORE, keep_ratio=0.01), tiny_mesh())
    with pytest.raises(ValueError, match="num_vertices is 431"):
        FastMETRO(FastMETROConfig(**TRANSFORMER, num_vertices=431), tiny_mesh())
    with pytest.raises(ValueError, match="stride 32"):
        FastMETRO(FastMETROConfig(**{**TRANSFORMER, "image_size": 100}), tiny_mesh())
    with pytest.raises(ValueError, match="no model 'no_such_net'"):
        create_model("tore_default", backbone="no_such_net")
    with pytest.raises(ValueError, match="unknown config field"):
        create_model("tore_default", depth=3)
    with pytest.raises(ValueError, match="mesh must be one of"):
        create_model("tore_default", mesh="ours")


def test_smpl_topology_needs_a_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TORE_FAST_MESH_DATA", raising=False)
    with pytest.raises(ValueError, match="TORE_FAST_MESH_DATA"):
        create_model("tore_default", mesh="smpl")
    with pytest.raises(FileNotFoundError):
        create_model("tore_default", mesh="smpl", mesh_data=tmp_path)


def test_metro_gtr_widths_must_match():
    with pytest.raises(ValueError, match="dim_3"):
        METRO_TORE(METROToreConfig(**{**METRO_GTR, "dim_3": 32}), tiny_mesh())


def test_position_encoding_formula():
    from tore_fast.layers.positional import sine_position

    pos = sine_position(3, 5, 8)
    y, x = 2, 4  # row 1, column 3, counted from 1
    angle_y, angle_x = 2 * math.pi * y / 3, 2 * math.pi * x / 5
    want = [f(a / w) for a in (angle_y, angle_x) for w in (1.0, 100.0) for f in (math.sin, math.cos)]
    torch.testing.assert_close(pos[1 * 5 + 3], torch.tensor(want), atol=1e-4, rtol=1e-4)
