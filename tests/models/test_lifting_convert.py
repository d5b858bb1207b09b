"""Official checkpoint layouts of the video pose hosts: what wraps them, what is refused."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

from tore_fast.models import create_model, load
from tore_fast.models._weights import read_state_dict
from tore_fast.models.lifting.layouts import model_from_state
from tore_fast.models.lifting.motionagformer import Motionagformer

HOSTS = {
    "mixste_9": dict(channels=16, heads=8, depth=4, mlp_hidden=24),
    "motionbert_lite_27": dict(frames=27, max_frames=27, channels=16, depth=3, mlp_hidden=24, rep_channels=20),
    "mhformer_9": dict(channels=16, mlp_hidden=24),
    "motionagformer_27": dict(channels=16, depth=8, rep_channels=20),
}


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("pruned", [False, True])
def test_wrapped_checkpoints_load(name, pruned, tmp_path):
    fields = dict(HOSTS[name])
    if pruned:
        n = 7 if "agformer" in name else 3 if "mixste" in name else 1
        fields |= dict(prune_block=n, keep_frames=5, recovery="tra")
    model = create_model(name, **fields).eval()
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    state["module.head.total_ops"] = torch.zeros(1, dtype=torch.float64)
    rest = {"epoch": 3, "lr": 4e-5, "min_loss": np.float64(40.1), "random_state": np.random.RandomState(1)}
    torch.save({"model_pos": collections.OrderedDict(state), **rest}, tmp_path / "best.bin")
    again = load(tmp_path / "best.bin")
    assert again.config == model.config
    x = torch.randn(1, model.config.frames, 17, model.in_channels)
    with torch.inference_mode():
        assert torch.equal(again(x).pose, model(x).pose)


def test_bare_state_dict_with_tpc_settings(tmp_path):
    model = create_model("mixste_9", **HOSTS["mixste_9"])
    torch.save(model.state_dict(), tmp_path / "model_40_4100.pth")
    tpc = load(tmp_path / "model_40_4100.pth", prune_block=2, keep_frames=3, keep_center=True)
    with torch.inference_mode():
        assert tpc(torch.randn(1, 9, 17, 2)).pose.shape == (1, 3, 17, 3)


def test_missing_and_unexpected_keys_are_named():
    whole = create_model("mixste_9", **HOSTS["mixste_9"]).state_dict()
    state = {**whole, "extra.weight": torch.zeros(1)}
    del state["head.1.bias"]
    with pytest.raises(
        ValueError, match=r"does not fit mixste: 1 keys missing, first: head.1.bias; 1 keys unexpected, first: extra.w"
    ):
        model_from_state(state)
    with pytest.raises(ValueError, match=r"1 keys of another shape, first: head.1.bias \[4\] \(expected \[3\]\)"):
        model_from_state({**whole, "head.1.bias": torch.zeros(4)})
    with pytest.raises(ValueError, match="no known video pose host"):
        model_from_state({"conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="lacks Temporal_pos_embed"):
        model_from_state({k: v for k, v in whole.items() if k != "Temporal_pos_embed"})


class _Attack:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"model_pos": {}, "payload": _Attack()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="bad.pth: expected a state dict"):
        read_state_dict(tmp_path / "bad.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="cut.pth: not a readable weight file"):
        read_state_dict(tmp_path / "cut.pth")
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        read_state_dict(tmp_path / "nowhere.pth")
    assert "never run" not in capsys.readouterr().out


def test_motionagformer_reads_its_pruning_off_the_shapes():
    fields = dict(prune_block=2, keep_frames=5, keep_center=True)
    model = create_model("motionagformer_27", **HOSTS["motionagformer_27"], **fields)
    again = model_from_state(model.state_dict())
    assert isinstance(again, Motionagformer) and again.config == model.config
