"""SMPL / MANO adapters on fabricated model files, and the topology loader on the real files where they are at hand."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from tore_fast.body import build_hierarchy, load_body, load_topology
from tore_fast.geometry.skeleton import J24

from .fabricate import model_fields, write_pickle


def own_topology(name: str, fields: dict, folder, object_arrays: bool) -> None:
    """Sampling files in the layout of the official repositories, for the fabricated template."""
    counts = {"smpl": (1723, 431), "mano": (195,)}[name]
    h = build_hierarchy(fields["v_template"], fields["f"].astype(np.int32), counts)
    down = [
        sp.csc_matrix((np.ones(len(p)), (np.arange(len(p)), p)), shape=(len(p), n)) for p, n in zip(h.picks, h.counts)
    ]
    if object_arrays:
        parts = {"U": [sp.csc_matrix(u) for u in h.ups], "D": down, "F": list(h.faces)}
        arrays = {k: np.empty(len(v), object) for k, v in parts.items()}
        for k, v in parts.items():
            arrays[k][:] = v
        np.savez(folder / {"smpl": "mesh_downsampling.npz", "mano": "mano_downsampling.npz"}[name], **arrays)
        return
    arrays = {f"{name}_F{i}": f for i, f in enumerate(h.faces)}
    for i, (u, d) in enumerate(zip(h.ups, down)):
        for key, m in ((f"{name}_U{i}", u), (f"{name}_D{i}", d.tocsr())):
            arrays |= {
                f"{key}_indptr": m.indptr,
                f"{key}_indices": m.indices,
                f"{key}_data": m.data,
                f"{key}_shape": m.shape,
            }
    np.savez(folder / "mesh_sampling_plain.npz", **arrays)


@pytest.fixture(scope="module", params=["smpl", "mano"])
def fabricated(request, tmp_path_factory):
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    fields = model_fields(name, np.random.default_rng(7))
    own_topology(name, fields, folder, object_arrays=name == "smpl")
    rng = np.random.default_rng(8)
    if name == "smpl":
        np.save(folder / "J_regressor_extra.npy", rng.random((14, 6890)) / 6890)
        np.save(folder / "J_regressor_h36m_correct.npy", rng.random((17, 6890)) / 6890)
    file = folder / {"smpl": "SMPL_NEUTRAL.pkl", "mano": "MANO_RIGHT.pkl"}[name]
    write_pickle(file, fields, protocol=2)
    return name, fields, folder, file


def test_model_file(fabricated):
    name, fields, folder, file = fabricated
    body = load_body(name, file, topology=folder)
    assert body.hierarchy.counts == {"smpl": (6890, 1723, 431), "mano": (778, 195)}[name]
    assert body.num_betas == 10
    zero, flat = torch.zeros(1, body.num_joints, 3), load_body(name, folder, topology=folder, **_flat(name))
    betas = torch.randn(1, 10)
    shaped = fields["v_template"] + fields["shapedirs"][..., :10] @ betas[0].double().numpy()
    np.testing.assert_allclose(flat(zero, betas).vertices[0], shaped, atol=2e-6)
    np.testing.assert_allclose(flat(zero, betas).joints[0], fields["J_regressor"] @ shaped, atol=2e-6)
    if name == "mano":  # zero pose is the mean hand unless asked otherwise; matrices are taken as they are
        mean = torch.cat([torch.zeros(3), torch.from_numpy(fields["hands_mean"]).float()])[None]
        torch.testing.assert_close(body(zero).vertices, flat(mean).vertices)
        eye = torch.eye(3).expand(1, 16, 3, 3)
        torch.testing.assert_close(body(eye).vertices, flat(zero).vertices, atol=1e-6, rtol=0)


def _flat(name):
    return {"flat_hand_mean": True} if name == "mano" else {}


def test_pose_correctives_against_a_loop(fabricated):
    name, fields, folder, file = fabricated
    body = load_body(name, file, topology=folder, **_flat(name))
    pose = 0.5 * torch.randn(1, body.num_joints, 3)
    from tore_fast.body.lbs import forward_kinematics, skin_vertices
    from tore_fast.geometry.rotation import axis_angle_to_matrix

    rotations = axis_angle_to_matrix(pose.double())
    bend = (rotations[0, 1:] - torch.eye(3)).reshape(-1).numpy()
    rest = torch.from_numpy(fields["v_template"] + fields["posedirs"] @ bend)[None]
    joints = torch.from_numpy(fields["J_regressor"] @ fields["v_template"])[None]
    world, place = forward_kinematics(rotations, joints, body.ancestors)
    want = skin_vertices(rest, torch.from_numpy(fields["weights"]), world, place, joints)
    torch.testing.assert_close(body(pose).vertices.double(), want, atol=1e-5, rtol=0)
    top = body.hierarchy.num_levels - 1
    torch.testing.assert_close(body(pose, level=top).vertices, body.coarse(body(pose).vertices, top))


def test_regressors_of_a_model(fabricated):
    name, fields, folder, file = fabricated
    body = load_body(name, file, topology=folder)
    vertices = torch.randn(1, len(body.template), 3)
    own = fields["J_regressor"].toarray() @ vertices[0].double().numpy()
    if name == "smpl":
        extra = np.load(folder / "J_regressor_extra.npy") @ vertices[0].double().numpy()
        got = body.regress("j24", vertices)[0].numpy()
        np.testing.assert_allclose(got[J24.index("L_Knee")], own[4], atol=1e-5)
        np.testing.assert_allclose(got[J24.index("R_Hip")], extra[29 - 24], atol=1e-5)
        np.testing.assert_allclose(got[J24.index("R_Ear")], extra[27 - 24], atol=1e-5)
    else:
        got = body.regress("hand21", vertices)[0].numpy()
        np.testing.assert_allclose(got[:2], own[[0, 13]], atol=1e-5)
        np.testing.assert_array_equal(got[[4, 8, 12, 16, 20]], vertices[0, [745, 317, 445, 556, 673]].numpy())


def test_queries_of_metro_from_a_model_file(fabricated, monkeypatch):
    """METRO's and Mesh Graphormer's template: SMPL turned by 3.1416 about x, centred on the regressed pelvis; MANO's
    mean
    hand, centred on the wrist, with manopth's tips (the middle one is vertex 444 there)."""
    from tore_fast.models import METRO, METROConfig
    from tore_fast.models.mesh._topology import resolve_mesh

    name, fields, folder, file = fabricated
    mesh = resolve_mesh(name, folder, need_template=True)
    own = load_body(name, file, topology=folder, **_flat(name))
    if name == "smpl":
        root, angle = fields["J_regressor"].toarray()[0] @ fields["v_template"], 3.1416
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        vertices = (fields["v_template"] - root) @ turn.T + root
        h36m = np.load(folder / "J_regressor_h36m_correct.npy") @ vertices
        joints, origin = h36m[[3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10]], h36m[0]
    else:
        mean = torch.from_numpy(np.concatenate([np.zeros(3), fields["hands_mean"]])).float()[None]
        posed = own(mean)
        vertices, bones = posed.vertices[0].double().numpy(), posed.joints[0].double().numpy()
        points = np.concatenate([bones, vertices[[745, 317, 444, 556, 673]]])
        joints = points[[0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]]
        origin = joints[0]
    h = own.hierarchy
    coarse = vertices[h.picks[0]] if name == "mano" else vertices[h.picks[0]][h.picks[1]]
    np.testing.assert_allclose(mesh.template(), np.concatenate([joints, coarse]) - origin, atol=2e-5)
    small = dict(backbone=None, feature_dim=24, hidden=(32, 16, 16), widths=(12, 8), feedforward=(32, 32, 32), layers=1)
    fields = dict(mesh=name, num_joints=len(joints), pooled=name == "mano", camera_from_joints=name == "mano")
    model = METRO(METROConfig(**small, **fields), mesh_data=folder)
    assert model(torch.randn(1, 24, 7, 7)).vertices.shape == (1, h.counts[0], 3)
    file.rename(folder / "away")
    try:
        with pytest.raises(FileNotFoundError, match=f"{file.name}.*take their queries"):
            METRO(METROConfig(**small, **fields), mesh_data=folder)
    finally:
        (folder / "away").rename(file)


@pytest.mark.parametrize("fabricated", ["mano"], indirect=True)
def test_without_topology_files_a_hierarchy_is_made(fabricated, tmp_path):
    name, fields, folder, file = fabricated
    body = load_body(name, file)
    assert body.hierarchy.counts == (778, 195)
    np.testing.assert_allclose(np.asarray(body.hierarchy.ups[0].sum(1)).ravel(), 1, atol=1e-9)
    np.savez(tmp_path / "MANO_RIGHT.npz", **{k: v.toarray() if sp.issparse(v) else v for k, v in fields.items()})
    again = load_body(name, tmp_path)  # .npz, dense regressor, found by name
    torch.testing.assert_close(again.joints, body.joints)


def test_smpl_pickle_of_python2_protocol(tmp_path):
    fields = model_fields("smpl", np.random.default_rng(9))
    fields["posedirs"] = np.zeros_like(fields["posedirs"])  # protocol 0 writes numbers as text; zeros are short
    write_pickle(tmp_path / "m.pkl", fields, protocol=2, wrap=())
    from tore_fast.body.official import load_topology as topology

    own_topology("smpl", fields, tmp_path, object_arrays=False)
    body = load_body("smpl", tmp_path / "m.pkl", topology=topology("smpl", tmp_path), num_betas=3)
    assert body.num_betas == 3 and body.pose_mean is None


def _change(fields, what):
    fields = dict(fields)
    if what == "missing":
        del fields["weights"]
    elif what == "count":
        fields["v_template"] = fields["v_template"][:-1]
    elif what == "tree":
        fields["kintree_table"] = fields["kintree_table"][:, ::-1]
    elif what == "code":
        fields["code"] = np.random.default_rng  # pickled by name: not an array
    return fields


@pytest.mark.parametrize(
    "what,error,words",
    [
        ("missing", ValueError, "no field 'weights'; is this an official MANO model file"),
        ("count", ValueError, r"v_template must be \[778, 3\], got \[777, 3\]"),
        ("tree", ValueError, "kintree_table is not MANO's tree"),
        ("code", pickle.UnpicklingError, "refused to load numpy.random"),
    ],
)
def test_refuses_wrong_files(tmp_path, what, error, words):
    fields = _change(model_fields("mano", np.random.default_rng(1)), what)
    write_pickle(tmp_path / "bad.pkl", fields, 2, wrap=())
    with pytest.raises(error, match=words):
        load_body("mano", tmp_path / "bad.pkl")


def test_refuses_missing_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="neither a model file nor a folder with one of.*register at the SMPL page"
    ):
        load_body("smpl", tmp_path)
    with pytest.raises(FileNotFoundError, match="neither mesh_sampling_plain.npz nor mesh_downsampling.npz.*FastMETRO"):
        load_topology("smpl", tmp_path)
    with pytest.raises(ValueError, match="name must be 'smpl' or 'mano'"):
        load_topology("free", tmp_path)


def test_refuses_other_files_under_the_official_names(tmp_path):
    """Always a ValueError, which commands print as one line."""
    np.savez(tmp_path / "mesh_downsampling.npz", A=np.zeros(3))
    with pytest.raises(
        ValueError, match="mesh_downsampling.npz: not the mesh sampling file of SMPL .*no array 'U'; there is A"
    ):
        load_topology("smpl", tmp_path)
    np.savez(tmp_path / "mano_downsampling.npz", U=np.zeros(3), D=np.zeros(3), F=np.zeros(3))
    with pytest.raises(ValueError, match="mano_downsampling.npz: |down-sampling"):
        load_topology("mano", tmp_path)
    for name in ("mesh_downsampling.npz", "SMPL_NEUTRAL.npz"):
        (tmp_path / name).write_text("no archive")
    with pytest.raises(ValueError, match="not the mesh sampling file of SMPL .*not a zip file"):
        load_topology("smpl", tmp_path)
    with pytest.raises(ValueError, match="SMPL_NEUTRAL.npz: not an .npz file"):
        load_body("smpl", tmp_path)
    write_pickle(tmp_path / "SMPL_NEUTRAL.pkl", {"v_template": np.random.default_rng}, 2, wrap=())
    with pytest.raises(ValueError, match="SMPL_NEUTRAL.pkl: refused to load numpy.random"):
        load_body("smpl", tmp_path)


# ---- the real files (never committed): --mesh-data, TORE_FAST_MESH_DATA or ../shared/data/hmr


def test_real_smpl_topology(mesh_data):
    t = load_topology("smpl", mesh_data)
    assert t.hierarchy.counts == (6890, 1723, 431)
    assert [len(f) for f in t.hierarchy.faces] == [13776, 3442, 858]
    assert t.regressors["h36m17"].shape == (17, 6890) and t.regressors["extra14"].shape == (14, 6890)
    edges = t.hierarchy.edges(1)
    assert len(edges) == 5163 and t.loss_faces[1].shape == (3451, 3)
    f = t.loss_faces[1].astype(np.int64)
    other = np.unique(np.sort(np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]]), 1), axis=0)
    np.testing.assert_array_equal(edges, other)  # the two face lists of upstream have the same edges
    for level, up in enumerate(t.hierarchy.ups):
        kept = up[t.hierarchy.picks[level]] - sp.identity(up.shape[1])
        assert abs(kept).max() < 1e-6 and np.diff(up.indptr).max() == 3


@pytest.mark.parametrize("name,file", [("smpl", "smpl_431"), ("mano", "mano_195")])
def test_real_adjacency_equals_upstream(mesh_data, name, file):
    t = load_topology(name, mesh_data)
    index = torch.load(mesh_data / f"{file}_adjmat_indices.pt", weights_only=True).numpy()
    values = torch.load(mesh_data / f"{file}_adjmat_values.pt", weights_only=True).numpy()
    size = tuple(torch.load(mesh_data / f"{file}_adjmat_size.pt", weights_only=True))
    level = t.hierarchy.num_levels - 1
    ours = t.hierarchy.adjacency(level)
    assert ours.shape == size and ours.nnz == len(values)
    assert abs(ours - sp.csr_matrix((values, index), shape=size)).max() < 1e-7


@pytest.mark.parametrize("name,file", [("smpl", "mesh_downsampling.npz"), ("mano", "mano_downsampling.npz")])
def test_real_pickled_files_equal_the_plain_ones(mesh_data, tmp_path, name, file):
    (tmp_path / file).symlink_to(mesh_data / file)
    pickled, plain = load_topology(name, tmp_path).hierarchy, load_topology(name, mesh_data).hierarchy
    for a, b in zip(pickled.faces + pickled.picks, plain.faces + plain.picks):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(pickled.ups, plain.ups):
        assert abs(a - b).max() < 1e-6


def test_real_mesh_collection_is_refused(mesh_data):
    """Key M of upstream's file holds psbody objects: named, not built."""
    from tore_fast.io.safe_pickle import read_npz

    with pytest.raises(pickle.UnpicklingError, match="refused to load"):
        read_npz(mesh_data / "mesh_downsampling.npz", ("M",))
