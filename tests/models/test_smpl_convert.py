"""Official files: layouts, strictness, and that pickles are read without running what they say."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from made_up.command import command

from tore_fast.models import create_model, load
from tore_fast.models._weights import read_state_dict
from tore_fast.pipelines.hosts import load_host

TINY = dict(
    embed_dim=64,
    depth=2,
    num_heads=1,
    decoder_depth=2,
    decoder_heads=2,
    decoder_mlp_dim=32,
    decoder_dim=48,
    drop_path_rate=0.0,
)


class Settings:
    """Stands for the configuration objects of a Lightning file: its pickle names a class and a constructor call."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def lightning_file(path, state, tmp_path):
    data = {
        "state_dict": state,
        "epoch": 3,
        "hyper_parameters": {"cfg": Settings(f"touch {tmp_path / 'executed'}")},
        "callbacks": [Settings(f"touch {tmp_path / 'executed'}")],
    }
    torch.save(data, path)
    return path


def official(model, **extra):
    return {**{k: v.clone() for k, v in model.state_dict().items()}, **extra}


def test_lightning_file_loads_strictly_and_nothing_runs(tmp_path, capsys):
    model = create_model("hmr2_vits", **TINY).eval()
    junk = {"discriminator.x.weight": torch.ones(2), "smpl.betas": torch.ones(3), "initialized": torch.tensor(True)}
    path = lightning_file(tmp_path / "hmr2.ckpt", official(model, **junk), tmp_path)
    loaded = load(path, "hmr2", num_heads=1)
    assert not (tmp_path / "executed").exists()
    img = torch.randn(1, 3, 256, 256)
    torch.testing.assert_close(loaded(img).pose, model(img).pose, atol=0, rtol=0)
    with open(path, "rb") as f:
        assert b"posix" in f.read()  # the file does name os.system
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert command("convert", path, tmp_path / "ours") == 0
    said = capsys.readouterr().out
    assert "hmr2 layout" in said and "dropped 3 tensors" in said and not (tmp_path / "executed").exists()
    torch.testing.assert_close(load_host(str(tmp_path / "ours"))[1](img).pose, model(img).pose, atol=0, rtol=0)


def test_legacy_torch_files_are_read_too(tmp_path):
    model = create_model("hmr2_vits", **TINY)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "old.pth").keys() == model.state_dict().keys()


def test_camerahmr_with_its_fov_file(tmp_path, capsys):
    with torch.device("meta"):  # 67 million random numbers are not needed here
        model = create_model("camerahmr_vits", **TINY, fov_net=True).eval()
    model.to_empty(device="cpu")
    for i, t in enumerate(model.state_dict().values()):
        t.fill_(0.01 * (i % 7 + 1) if t.is_floating_point() else 0)
    state = official(model)
    fov = {k.removeprefix("cam_model."): v for k, v in state.items() if k.startswith("cam_model.")}
    assert len(fov) == 1874
    torch.save({"state_dict": fov}, tmp_path / "fov.ckpt")
    torch.save(
        {"state_dict": {k: v for k, v in state.items() if not k.startswith("cam_model.")}}, tmp_path / "cam.ckpt"
    )
    loaded = load(tmp_path / "cam.ckpt", "camerahmr", fov_net_file=tmp_path / "fov.ckpt", num_heads=1)
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
    alone = load(tmp_path / "cam.ckpt", "camerahmr", num_heads=1)
    assert alone.cam_model is None
    name, joined = load_host(str(tmp_path / "cam.ckpt"), str(tmp_path / "fov.ckpt"))
    assert name.startswith("camerahmr_") and joined.config.fov_net and joined.state_dict().keys() == state.keys()
    assert command("convert", tmp_path / "cam.ckpt", tmp_path / "ours", "--fov-net", tmp_path / "fov.ckpt") == 0
    assert "camerahmr layout" in capsys.readouterr().out
    assert command("convert", tmp_path / "fov.ckpt", tmp_path / "net") == 0
    again = load_host(str(tmp_path / "ours"))[1]
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items()) and again.config == joined.config
    assert load(tmp_path / "net").state_dict().keys() == fov.keys()
    assert command("convert", tmp_path / "fov.ckpt", tmp_path / "x", "--fov-net", tmp_path / "fov.ckpt") == 1
    assert "belongs to CameraHMR files" in capsys.readouterr().err
    net = load(tmp_path / "fov.ckpt", "humanfov")
    assert all(torch.equal(v, state[f"cam_model.{k}"]) for k, v in net.state_dict().items()) and not net.training


def test_densekp_file(tmp_path):
    model = create_model("densekp_vith", embed_dim=64, depth=1, num_heads=1, decoder_depth=1).eval()
    torch.save(model.state_dict(), tmp_path / "kp.pth")
    loaded = load(tmp_path / "kp.pth", "densekp")
    assert loaded.config == model.config
    img = torch.randn(1, 3, 256, 256)
    out = loaded(img)
    assert out.shape == (1, 138, 3)
    torch.testing.assert_close(out, model(img), atol=0, rtol=0)


def test_bad_files_say_why(tmp_path):
    model = create_model("hmr2_vits", **TINY)
    state = official(model)
    state.pop("smpl_head.deccam.bias")
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(ValueError, match="1 keys missing.*deccam"):
        load(tmp_path / "short.pth", "hmr2", num_heads=1)
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="official layout"):
        load(tmp_path / "other.pth", "hmr2")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text.pth: not a readable weight file \(a text file\)"):
        load(tmp_path / "text.pth", "hmr2")
    torch.save(official(model, **{"smpl_head.deccam.bias": torch.zeros(4)}), tmp_path / "shape.pth")
    with pytest.raises(ValueError, match="1 keys of another shape, first: smpl_head.deccam.bias"):
        load(tmp_path / "shape.pth", "hmr2", num_heads=1)
    with pytest.raises(FileNotFoundError, match="none.pth: no such file"):
        load(tmp_path / "none.pth", "hmr2")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="expected a state dict"):
        load(tmp_path / "empty.pth", "hmr2")
