"""Models as one thing for the pipelines: crops in, bodies out, whatever the model regresses.

`body_model(network)` gives a `BodyModel` for a network of task mesh (vertices from tokens) or smpl (parameters that
pose a body). It knows its crop rule, its camera convention and its joints. Next on the way: images.py, video_mesh.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .._device import autocast, check_precision
from .._threads import available_cpus
from ..body import Body, BodyTopology, load_body, load_topology
from ..body.official import mesh_data_folder
from ..engine import Engine
from ..geometry import camera
from ..geometry.crop import Crop, crop_of_box, whole_crop
from ..geometry.skeleton import H36M17_TO_J14, HAND21, J14, SMPL24
from ..geometry.warp import as_tensor, letterbox, normalise_image, person_crops, warp
from ..layers.mask_tome import ellipse_mask
from ..models._registry import facts_of
from ..models.keypoints.tcformer_heads import TCFormerHMR
from ..models.smpl.hmr2 import HMR2
from .hosts import load_named_body


class Sight(NamedTuple):
    """One crop to look at."""

    pixels: np.ndarray  # [H, W, 3] uint8, the whole image
    crop: Crop
    focal_px: float  # of the whole image's camera


class Bodies(NamedTuple):
    """N bodies in camera axes (x right, y down, z away), metres, each around its own origin."""

    camera: np.ndarray  # [N, 3] scale, tx, ty: point of the crop in [-1, 1] = scale * (xy + t)
    vertices: np.ndarray  # [N, V, 3]
    vertices_coarse: np.ndarray  # [N, V_coarse, 3]
    joints: np.ndarray  # [N, J, 3]
    rotations: np.ndarray | None = None  # [N, 24, 3, 3] of models of SMPL parameters
    betas: np.ndarray | None = None  # [N, 10]


class BodyModel:
    """What images.py needs of a model. Subclasses: MeshModel, ParameterModel, HostModel.

    Attributes:
        task: "mesh" or "smpl". fitted: bodies are fitted to landmarks, which results then hold. topology: faces and
        coarse levels. joint_names: of the J joints.
    """

    task = "mesh"
    fitted = False
    topology: BodyTopology
    joint_names: tuple[str, ...]

    def __init__(
        self, network: nn.Module, device: str | torch.device = "cpu", precision: str = "fp32", own: bool = False
    ):
        self.device, self.precision = torch.device(device), precision
        self.network = network.to(self.device).eval()
        self.engine: Engine | None = None
        if facts_of(network) is None:  # of another project
            check_precision(precision)
        else:
            self.engine = Engine(self.network, self.device, precision, own=own, follow=True)

    @torch.inference_mode()
    def run(self, crops: Tensor, *extra: Tensor | None) -> Any:
        """What the network returns for crops, uint8 0..255 or normalised, on this model's device."""
        if self.engine is not None:
            return self.engine(crops, *extra)
        with autocast(self.device, self.precision):
            return self.network(normalise_image(crops.to(self.device)), *extra)

    def crop_of_box(self, box: Sequence[float]) -> Crop:
        """The square that the model wants to see of a person's box."""
        return crop_of_box(box)

    def whole_crop(self, width: int, height: int) -> Crop:
        """The square for a person who fills the image."""
        return whole_crop(width, height)

    def focal_px(self, pixels: np.ndarray) -> float:
        """Focal length in pixels of an image's camera, where the user gave none: HMR2.0's default."""
        height, width = pixels.shape[:2]
        return float(camera.default_focal(torch.tensor([[float(width), float(height)]]))[0])

    def __call__(self, sights: Sequence[Sight]) -> Bodies:
        raise NotImplementedError


class MeshBody(BodyModel):
    """A network whose output has `camera`, `vertices` and `vertices_coarse`."""

    def __init__(
        self,
        network: nn.Module,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        topology: BodyTopology | None = None,
        mesh_data: str | Path | None = None,
        own: bool = False,
    ):
        super().__init__(network, device, precision, own)
        self.topology = mesh_of(network, mesh_data) if topology is None else topology
        regressor, self._rows, self.joint_names = _joint_rows(self.topology)
        self._regressor = torch.from_numpy(regressor).to(self.device)
        official = self.topology.name in ("smpl", "mano")
        facts = facts_of(network)
        # official METRO and TORE weights project the mesh as it comes out; FastMETRO's (and ours) after centring it
        self._centred = not (official and facts is not None and facts.projection == "as_is")
        size = getattr(getattr(network, "config", None), "image_size", 224)
        self.image_size = int(size if isinstance(size, int) else size[0])

    def crops(self, sights: Sequence[Sight]) -> Tensor:  # [N, 3, S, S] uint8
        return square_crops(sights, self.image_size).to(self.device)

    @torch.inference_mode()
    def __call__(self, sights: Sequence[Sight]) -> Bodies:
        out = self.run(self.crops(sights))
        lacking = [k for k in ("camera", "vertices", "vertices_coarse") if not hasattr(out, k)]
        if lacking:
            raise ValueError(
                f"expected a model of task mesh or smpl (tore-fast list), got {type(self.network).__name__}, "
                f"whose output lacks {', '.join(lacking)}"
            )
        vertices, seen = out.vertices.float(), out.camera.float()
        if vertices.shape[1] != self._regressor.shape[1]:
            raise ValueError(
                f"the model gives {vertices.shape[1]} vertices, the mesh {self.topology.name!r} has "
                f"{self._regressor.shape[1]}; pass the topology the model was made for"
            )
        regressed = self._regressor @ vertices
        root = regressed[:, :1]
        if not self._centred:  # the same image points, in terms of the centred mesh
            seen = torch.cat([seen[:, :1], seen[:, 1:] + root[:, 0, :2]], 1)
        own = (getattr(out, "rotmat", None), getattr(out, "betas", None))  # of a SMPL head beside the mesh
        found = (seen, vertices - root, out.vertices_coarse.float() - root, regressed[:, self._rows] - root, *own)
        arrays: Any = (None if t is None else t.float().cpu().numpy() for t in found)
        return Bodies(*arrays)


class _PosedModel(BodyModel):
    """Models of SMPL parameters: rotations and betas pose `body`."""

    task = "smpl"

    def __init__(
        self,
        network: nn.Module,
        body: Body,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        own: bool = False,
    ):
        super().__init__(network, device, precision, own)
        self.body = body.to(self.device)
        self.topology, self.joint_names = body.topology, SMPL24.names

    def posed(self, seen: Tensor, rotations: Tensor, betas: Tensor, centred: bool) -> Bodies:
        """`centred`: the camera `seen` is for the mesh around its regressed pelvis, not for the body as it is posed."""
        rotations, betas, seen = rotations.float(), betas.float(), seen.float()
        posed = self.body(rotations, betas[:, : self.body.num_betas])
        if centred:
            root = self.body.regress("h36m17", posed.vertices)[:, 0, :2]
            seen = torch.cat([seen[:, :1], seen[:, 1:] - root], 1)
        coarse = self.body.coarse(posed.vertices, self.body.hierarchy.num_levels - 1)
        found = (seen, posed.vertices, coarse, posed.joints[:, :24], rotations, betas)
        return Bodies(*(t.cpu().numpy() for t in found))


class ParameterModel(_PosedModel):
    """TCFormer with HMR's regressor: crops of the mesh models, parameters of the free body."""

    def __init__(
        self, network: TCFormerHMR, device: str | torch.device = "cpu", precision: str = "fp32", own: bool = False
    ):
        if network.config.mesh != "free":
            raise ValueError(
                f"the weights are for the body {network.config.mesh!r}, whose files are not shipped; it cannot "
                "be posed here (`tore-fast eval --body FILE` scores them)"
            )
        super().__init__(network, load_body("free"), device, precision, own)
        self.image_size = int(network.config.image_size)

    @torch.inference_mode()
    def __call__(self, sights: Sequence[Sight]) -> Bodies:
        out = self.run(square_crops(sights, self.image_size).to(self.device))
        return self.posed(out.camera, out.rotations, out.shape, centred=True)


class HostModel(_PosedModel):
    """HMR2.0 and CameraHMR, with or without merged layers and tokens.

    Args:
        box_rule: hmr2 or tight (geometry/crop.py). masks: "ellipse" merges tokens outside an ellipse in the crop first.
    """

    def __init__(
        self,
        network: HMR2,
        body: Body,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        box_rule: str = "hmr2",
        masks: str = "auto",
        own: bool = False,
    ):
        super().__init__(network, body, device, precision, own)
        self.box_rule, self.masks = box_rule, masks
        self.network: Any
        self.image_size = int(network.config.img_size[0])

    def crop_of_box(self, box: Sequence[float]) -> Crop:
        return crop_of_box(box, self.box_rule, self.network.config.box_margin)

    def whole_crop(self, width: int, height: int) -> Crop:
        return self.crop_of_box((0.0, 0.0, float(width), float(height)))

    def focal_px(self, pixels: np.ndarray) -> float:
        if getattr(self.network, "cam_model", None) is None:
            return super().focal_px(pixels)
        with torch.inference_mode(), self.engine.context():  # type: ignore[union-attr]
            fov = self.network.estimate_fov(
                normalise_image(letterbox(as_tensor(pixels, self.device), camera.CROP_PX))[None]
            )
        return float(camera.focal_from_fov(fov.float().clamp(0.05, 3.0), pixels.shape[0])[0])

    @torch.inference_mode()
    def __call__(self, sights: Sequence[Sight]) -> Bodies:
        crops = torch.cat([person_crops(as_tensor(s.pixels, self.device), [s.crop], self.image_size) for s in sights])
        size, mask = crops.shape[-1], None
        if self.masks == "ellipse" and self.network.backbone.merging is not None:
            mask = ellipse_mask(len(sights), size, size, self.device)
        extra: tuple[Tensor, ...] = ()
        if self.network.facts.takes_camera:
            q = torch.tensor([s.crop.x_y_side for s in sights], device=self.device)
            image = torch.tensor([(s.pixels.shape[1], s.pixels.shape[0]) for s in sights], device=self.device).float()
            extra = (q[:, :2], q[:, 2], image, torch.tensor([s.focal_px for s in sights], device=self.device))
        out = self.run(crops, mask, *extra)
        return self.posed(out.cam, out.rotations, out.betas, centred=False)


def body_model(
    network: Any,
    source: str = "model",
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    body: str = "free",
    topology: BodyTopology | None = None,
    mesh_data: str | Path | None = None,
    box_rule: str = "hmr2",
    masks: str = "auto",
    own: bool = False,
) -> BodyModel:
    """The BodyModel of a network.

    Args:
        source: what the network came from, for messages. body: "free" or a SMPL model file, for HMR2.0 and CameraHMR.
        own: the network is changed for speed; otherwise a copy is.

    Raises:
        ValueError: a network of another task; a topology that is not there.
    """
    facts = facts_of(network)
    if facts is not None and facts.task == "smpl" and facts.crop == "square":
        return ParameterModel(network, device, precision, own)
    if facts is not None and facts.task == "smpl":
        return HostModel(network, load_named_body(body), device, precision, box_rule, masks, own)
    if facts is None or facts.task == "mesh":  # of another project: its output tells whether it fits
        return MeshBody(network, device, precision, topology, mesh_data, own)
    raise ValueError(
        f"{source}: expected a model of task mesh or smpl (fastmetro*, metro*, graphormer*, tore_default, "
        f"tcformer_*_hmr, hmr2*, camerahmr*, fasthmr_*), got {type(network).__name__}"
    )


def square_crops(sights: Sequence[Sight], size: int) -> Tensor:  # [N, 3, size, size] uint8
    """Crops as SPIN's line of models was trained to see them, cut by as many threads as there are crops and CPUs."""
    jobs = [(s.pixels, s.crop, size) for s in sights]
    with ThreadPoolExecutor(min(len(jobs), available_cpus())) as pool:  # Pillow lets other threads run
        cut = list(pool.map(lambda job: warp(*job), jobs))
    return torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)


def mesh_of(model: nn.Module, mesh_data: str | Path | None = None) -> BodyTopology:
    """Topology of the mesh a model regresses, by the name it carries ("free" where it carries none)."""
    name = getattr(getattr(model, "mesh", None), "name", "free")
    if name in ("free", "free_hand"):
        return load_body(name).topology
    folder = mesh_data_folder(mesh_data)
    if folder is None:
        raise ValueError(
            f"the model uses the {name.upper()} mesh, whose topology files are not shipped; pass --mesh-data DIR "
            "(in Python mesh_data=DIR, or set $TORE_FAST_MESH_DATA)"
        )
    return load_topology(name, folder)


def _joint_rows(topology: BodyTopology) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    """Regressor whose row 0 is the root, the rows that are reported, and their names."""
    if "h36m17" in topology.regressors:
        return topology.regressor("h36m17"), list(H36M17_TO_J14), J14.names
    if "hand21" in topology.regressors:
        return topology.regressor("hand21"), list(range(21)), HAND21.names
    raise ValueError(
        f"the mesh {topology.name!r} has no joint regressor; its folder needs J_regressor_h36m_correct.npy"
    )
