"""Objects of smplx handed over: SMPL, SMPL-H and MANO made of random numbers, posed by both packages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tore_fast.body import load_body
from tore_fast.geometry.skeleton import MANO16, SMPL24

smplx = pytest.importorskip("smplx")
Struct = pytest.importorskip("smplx.utils").Struct


def random_data(vertices: int, parents: tuple[int, ...], hands: bool):
    rng = np.random.default_rng(0)
    bones = len(parents)
    weights, regressor = rng.random((vertices, bones)) ** 8, rng.random((bones, vertices)) ** 8
    data = dict(
        v_template=rng.normal(size=(vertices, 3)),
        shapedirs=rng.normal(size=(vertices, 3, 10)) * 0.1,
        posedirs=rng.normal(size=(vertices, 3, 9 * (bones - 1))) * 0.01,
        J_regressor=regressor / regressor.sum(1, keepdims=True),
        weights=weights / weights.sum(1, keepdims=True),
        kintree_table=np.array([[2**32 - 1, *parents[1:]], range(bones)]),
        f=(np.arange(vertices)[:, None] + [0, 1, 2]).astype(np.uint32) % vertices,
    )
    if hands:
        data |= dict(hands_mean=rng.normal(size=45) * 0.2, hands_components=np.eye(45))
        for side in "lr":
            data |= {f"hands_mean{side}": rng.normal(size=45) * 0.2, f"hands_components{side}": np.eye(45)}
    return Struct(**data)


SMPLH = (*SMPL24.parents[:22], 20, *(20 if i % 3 == 0 else 21 + i for i in range(1, 15)))
SMPLH = (*SMPLH, 21, *(21 if i % 3 == 0 else 36 + i for i in range(1, 15)))


def test_smpl():
    model = smplx.SMPL("", data_struct=random_data(6890, SMPL24.parents, False), create_transl=False).double()
    body = load_body(model).double()
    pose, betas = torch.randn(2, 72).double() / 3, torch.randn(2, 10).double()
    want = model(betas=betas, global_orient=pose[:, :3], body_pose=pose[:, 3:])
    got = body(pose, betas)
    torch.testing.assert_close(got.vertices, want.vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.joints, want.joints[:, :24], atol=1e-5, rtol=0)
    assert body.name == "smpl" and body.joint_names == SMPL24.names


@pytest.mark.parametrize("flat", [True, False])
def test_mano(flat):
    data = random_data(778, MANO16.parents, True)
    model = smplx.MANO("", data_struct=data, use_pca=False, flat_hand_mean=flat, create_transl=False).double()
    body = load_body(model).double()
    pose, betas = torch.randn(2, 48).double() / 3, torch.randn(2, 10).double()
    want = model(betas=betas, global_orient=pose[:, :3], hand_pose=pose[:, 3:])
    torch.testing.assert_close(body(pose, betas).vertices, want.vertices, atol=1e-5, rtol=0)


def test_smplh():
    data = random_data(6890, SMPLH, True)
    model = smplx.SMPLH("", data_struct=data, use_pca=False, flat_hand_mean=False, create_transl=False).double()
    body = load_body(model).double()
    pose, betas = torch.randn(2, 156).double() / 3, torch.randn(2, 10).double()
    parts = dict(body_pose=pose[:, 3:66], left_hand_pose=pose[:, 66:111], right_hand_pose=pose[:, 111:])
    want = model(betas=betas, global_orient=pose[:, :3], **parts)
    torch.testing.assert_close(body(pose, betas).vertices, want.vertices, atol=1e-5, rtol=0)


def test_refusals():
    with pytest.raises(TypeError, match="lacks"):
        load_body(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="path"):
        load_body(torch.nn.Linear(2, 2), "x")
