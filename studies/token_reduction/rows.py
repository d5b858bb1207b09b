"""The study's protocol and rows: which models are compared, all reduced by the same factors, as named dataclass
configs.

In: nothing; out: PROTOCOLS, ROWS and `build(row, protocol)` for study.py. A row's model takes cached trunk features
(features.py) and returns MeshOutput without up-sampling: that is one fixed linear map, the same for every row.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tore_fast.layers._tokens import grid_tokens
from tore_fast.layers.ctm import CTM
from tore_fast.layers.dynamic_block import TCBlock
from tore_fast.layers.positional import sine_position
from tore_fast.models._outputs import MeshOutput
from tore_fast.models.keypoints.tcformer_heads import IterativeRegressor
from tore_fast.models.mesh._topology import mesh_from_topology
from tore_fast.models.mesh.fastmetro import FastMETRO, FastMETROConfig
from tore_fast.models.mesh.graphormer import MeshGraphormer, MeshGraphormerConfig
from tore_fast.models.mesh.metro import METRO, METROConfig
from tore_fast.models.mesh.metro_tore import METRO_TORE, METROToreConfig
from tore_fast.models.mesh.tore import FastMETRO_TORE, FastMETROToreConfig

CHANNELS, GRID, POSITION = 208, (7, 7), 32  # of the trunk's map; sine channels put beside it


@dataclass(frozen=True)
class Protocol:
    """What all rows share: data, schedule, widths."""

    image_size: int = 112
    images: int = 8_192  # training images, cached
    difficulty: float = 0.3  # of the training images: the prior of the held-out set "easy"
    data_seed: int = 1008
    eval_images: int = 1000  # of the held-out set "easy", and half as many of "hard"
    vertices: int = 108  # of the coarsest mesh level, the papers' 431
    steps: int = 1024
    batch_size: int = 8
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 1e-4
    clip_norm: float = 10.0
    # Learned queries start at this share of the papers' N(0, 1): at these widths full-size ones drown the image in the
    # LayerNorm, and the heads stay at the mean pose for the whole budget (docs/study.md).
    query_init: float = 0.25
    # Soft ITP's heat maps start with peaks: near-uniform ones, as released, make all tokens alike, and this budget is
    # over before they differ (docs/study.md).
    selector_gain: float = 24.0
    # widths; the papers' are 512 and 128, feed-forward 4 times each (METRO's first block twice dim_1)
    dim_1: int = 64
    dim_2: int = 32
    heads: int = 4
    bert_layers: int = 1  # of each of the three blocks of METRO and Graphormer; the papers' 4


PROTOCOLS = {
    "cpu": Protocol(),
    "tiny": Protocol(
        images=64, eval_images=20, vertices=40, steps=4, batch_size=8, warmup=1, dim_1=16, dim_2=16, heads=2
    ),
    # the papers' widths on a GPU; not run so far
    "gpu": Protocol(
        images=131_072,
        steps=20_480,
        batch_size=128,
        vertices=431,
        lr=3e-4,
        warmup=500,
        query_init=1.0,
        dim_1=512,
        dim_2=128,
        heads=8,
        bert_layers=4,
    ),
}


@dataclass(frozen=True)
class Row:
    """One model of the study."""

    family: str  # fastmetro, tore, metro, metro_tore, graphormer, tcformer, mlp
    layers: int = 1  # of every encoder and decoder: 1 = size S, 3 = size L
    selector: str = "none"
    keep: float = 1.0
    train_noise: float = 0.0  # of the NSR's joint features while training (figure D6)
    lr_factor: float = 1.0  # the learning-rate sweep's rows
    budget: int = 1  # times the protocol's steps: is a gap one of convergence?
    seeds: int = 3
    later: int = 0  # rounds this row is put off: its seed s runs with the other rows' seed s + later
    label: str = ""
    full: tuple[str, dict] = field(default=("", {}))  # registered model and overrides at the paper's size


def _rows() -> dict[str, Row]:
    rows = {
        "mlp": Row("mlp", label="MLP on the 49 cells (baseline, no tokens)"),
        "fastmetro_s": Row("fastmetro", label="FastMETRO-S", full=("fastmetro_s_r50", {})),
        "fastmetro_l": Row("fastmetro", 3, seeds=2, label="FastMETRO-L", full=("fastmetro_l_r50", {})),
        "metro": Row("metro", seeds=2, label="METRO", full=("metro_r50", {})),
        "metro_gtr": Row("metro_tore", 3, label="METRO + GTR", full=("metro_tore_r50", {})),
        "graphormer": Row("graphormer", seeds=2, label="Mesh Graphormer", full=("graphormer_h64", {})),
        "tcformer": Row("tcformer", label="TCFormer-light stages + parameter head"),
    }
    for size, layers in (("s", 1), ("l", 3)):
        for tag, selector, keep in (
            ("gtr", "none", 1.0),
            ("soft100", "soft", 1.0),
            ("soft80", "soft", 0.8),
            ("soft50", "soft", 0.5),
            ("soft25", "soft", 0.25),
            ("cluster80", "cluster", 0.8),
            ("cluster50", "cluster", 0.5),
            ("attention80", "attention", 0.8),
        ):
            label = f"TORE-{size.upper()}: GTR" + ("" if selector == "none" else f" + ITP {selector} keep {keep:g}")
            overrides = {"selector": selector, "keep_ratio": keep}
            full = (f"fastmetro_tore_{size}_r50", overrides)
            rows[f"tore_{size}_{tag}"] = Row(
                "tore", layers, selector, keep, seeds=3 if size == "s" else 2, label=label, full=full
            )
    for percent in (5, 7.5, 10):
        name = f"tore_s_gtr_noise{percent:g}"
        rows[name] = Row(
            "tore",
            train_noise=percent / 100,
            seeds=2,
            later=1,
            label=f"TORE-S: GTR, trained with {percent:g} % NSR noise",
        )
    for base in ("mlp", "fastmetro_s", "metro_gtr", "tcformer", *(n for n in rows if n.startswith("tore_s_"))):
        row = rows[base]
        if not row.train_noise:
            rows[f"{base}_x4"] = dataclasses.replace(row, budget=4, seeds=2, later=1, label=f"{row.label}, four passes")
    for base, factors in (("fastmetro_s", (0.5, 2.0)), ("tore_s_gtr", (0.5, 2.0)), ("metro", (0.25, 0.5))):
        for factor in factors:
            row = rows[base]
            rows[f"{base}_lr{factor:g}"] = Row(
                row.family,
                row.layers,
                row.selector,
                lr_factor=factor,
                seeds=1,
                later=1,
                label=f"{row.label}, learning rate x{factor:g}",
            )
    return rows


ROWS = _rows()


class StudyHead(nn.Module):
    """A row's model on cached features: [B, 208, 7, 7] -> MeshOutput (joints, coarse vertices, camera).

    The same for every row: features are standardised per channel; sine positions are put beside them (attention adds
    positions to queries and keys only, and heads on a small trunk stay at the mean pose when the token contents do not
    tell where a token is); the model regresses the difference from the training images' mean mesh, joints and camera.
    """

    def __init__(self, net: nn.Module, graph: bool, vertices: int, parametric: bool = False, joints: int = 14):
        super().__init__()
        self.net, self.graph, self.parametric = net, graph, parametric
        self.register_buffer("position", sine_position(*GRID, POSITION).T.reshape(1, POSITION, *GRID), persistent=False)
        self.register_buffer("shift", torch.zeros(1, CHANNELS, 1, 1))
        self.register_buffer("scale", torch.ones(1, CHANNELS, 1, 1))
        self.register_buffer("mean_camera", torch.zeros(3))
        self.register_buffer("mean_joints", torch.zeros(joints, 3))
        self.register_buffer("mean_coarse", torch.zeros(vertices, 3))

    def set_statistics(self, data: dict[str, Tensor]) -> None:
        """From the training images (the first 2,000 for the features)."""
        features = data["features"][:2000].float()
        self.shift.copy_(features.mean((0, 2, 3), keepdim=True))
        self.scale.copy_(1 / features.std((0, 2, 3), keepdim=True).clamp(min=1e-3))
        for name, values in (("camera", "camera"), ("joints", "joints3d"), ("coarse", "coarse")):
            getattr(self, f"mean_{name}").copy_(data[values].mean(0))

    def forward(self, features: Tensor, nsr_noise: float = 0.0) -> MeshOutput:
        x = (features.float() - self.shift) * self.scale
        x = torch.cat([x, self.position.expand(x.shape[0], -1, -1, -1)], 1)
        extra = {"nsr_noise": nsr_noise} if nsr_noise else {}
        out = self.net((x.mean((2, 3)), x) if self.graph else x, fine=False, **extra)
        if self.parametric:  # it starts from the mean parameters itself
            return out
        return out._replace(
            camera=out.camera + self.mean_camera,
            joints=out.joints + self.mean_joints,
            vertices_coarse=out.vertices_coarse + self.mean_coarse,
        )


class MlpHead(nn.Module):
    """Baseline: all cells flattened, two linear layers, no tokens and no attention."""

    def __init__(self, channels: int, vertices: int, joints: int = 14, dim: int = 32, hidden: int = 256):
        super().__init__()
        self.joints = joints
        self.reduce = nn.Conv2d(channels, dim, 1)
        self.one, self.two = nn.Linear(dim * GRID[0] * GRID[1], hidden), nn.Linear(hidden, 3 * (joints + vertices) + 3)
        nn.init.normal_(self.two.weight, std=0.01)

    def forward(self, x: Tensor, fine: bool = False) -> MeshOutput:
        y = self.two(F.gelu(self.one(F.gelu(self.reduce(x)).flatten(1))))
        points = y[:, 3:].unflatten(1, (-1, 3))
        return MeshOutput(y[:, :3], points[:, : self.joints], points[:, self.joints :], None, None)


class ClusterStages(nn.Module):
    """TCFormer-light on the trunk's tokens: two blocks, CTM 49 -> 13, two blocks, token mean -> iterative regressor.

    Its output are pose, shape and camera; the body turns them into joints and coarse vertices.
    """

    def __init__(self, channels: int, body, dims: tuple[int, int], heads: int, hidden: int = 256):
        super().__init__()
        self.body = [body]  # not a submodule: buffers only, shared by all rows
        self.reduce = nn.Conv2d(channels, dims[0], 1)
        self.stage_1 = nn.ModuleList(TCBlock(dims[0], heads, 4, 1, on_grid=True) for _ in range(2))
        self.ctm = CTM(dims[0], dims[1])
        self.stage_2 = nn.ModuleList(TCBlock(dims[1], heads, 4, 1) for _ in range(2))
        self.norm = nn.LayerNorm(dims[1])
        self.regressor = IterativeRegressor(dims[1], hidden=hidden, num_shape=body.num_betas)
        self.regressor.drop = nn.Identity()  # no row of the study has dropout
        turned = torch.diag(torch.tensor([1.0, -1.0, -1.0]))[:, :2]  # a camera sees the body y down
        self.regressor.init_pose.view(-1, 3, 2)[0] = turned

    def forward(self, x: Tensor, fine: bool = False) -> MeshOutput:
        body = self.body[0]
        tokens = grid_tokens(self.reduce(x).flatten(2).transpose(1, 2), GRID)
        for block in self.stage_1:
            tokens = block(tokens)
        tokens, keys = self.ctm(tokens)
        for block in self.stage_2:
            tokens = block(tokens, keys)
            keys = None
        params = self.regressor(self.norm(tokens.x).mean(1))
        coarse = body(params.rotations, params.shape, level=body.hierarchy.num_levels - 1).vertices
        joints = body.regress("h36m17", coarse)
        coarse = coarse - joints[:, :1]
        return MeshOutput(
            params.camera, body.regress("j14", coarse), coarse, None, None, None, params.rotations, params.shape
        )


def build(row: Row, protocol: Protocol, body) -> StudyHead:
    """The row's model with random weights (torch's global generator); its vertices are the coarsest level of `body`."""
    p, channels = protocol, CHANNELS + POSITION
    mesh = mesh_from_topology(body.topology, body.template.numpy(force=True) * [1.0, -1.0, -1.0])  # queries: y down
    mesh = dataclasses.replace(mesh, ups=mesh.ups[:1])  # up-sampling is not the model's business here
    count = mesh.counts[0]
    shared = dict(
        backbone=None, feature_dim=channels, image_size=p.image_size, stride=p.image_size // GRID[0], dropout=0.0
    )
    two = dict(dim_1=p.dim_1, dim_2=p.dim_2, feedforward_1=4 * p.dim_1, feedforward_2=4 * p.dim_2, heads=p.heads)
    bert = dict(
        hidden=(2 * p.dim_1, 2 * p.dim_2, p.dim_2),
        widths=(p.dim_1, p.dim_2),
        layers=p.bert_layers,
        heads=4,
        feedforward=(4 * p.dim_1,) * 3,
    )
    nsr = dict(dim_3=p.dim_2, feedforward_3=4 * p.dim_2)
    if row.family == "mlp":
        net = MlpHead(channels, count)
    elif row.family == "tcformer":
        net = ClusterStages(channels, body, (p.dim_1, 2 * p.dim_1), p.heads)
    elif row.family == "fastmetro":
        net = FastMETRO(FastMETROConfig(layers=row.layers, learned_upsample=False, **shared, **two), mesh)
    elif row.family == "tore":
        itp = dict(selector=row.selector, keep_ratio=row.keep, selector_dim=p.dim_2, selector_gain=p.selector_gain)
        net = FastMETRO_TORE(FastMETROToreConfig(layers=row.layers, **shared, **two, **nsr, **itp), mesh)
    elif row.family == "metro":
        net = METRO(METROConfig(**shared, **bert), mesh)
    elif row.family == "metro_tore":
        net = METRO_TORE(METROToreConfig(heads_3=p.heads, layers_3=row.layers, **shared, **bert, **nsr), mesh)
    elif row.family == "graphormer":
        net = MeshGraphormer(MeshGraphormerConfig(grid_dim=channels, **shared, **bert), mesh)
    else:
        raise ValueError(f"study: unknown family {row.family!r}")
    if hasattr(net, "upsampling"):  # METRO's learned dense matrices; here one fixed matrix serves all rows
        net.upsampling = net.upsampling2 = None
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith("token_embed.weight"):
                weight.mul_(p.query_init)
    return StudyHead(net, row.family == "graphormer", count, parametric=row.family == "tcformer")
