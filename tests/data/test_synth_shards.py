"""Shards of synthetic images: the same bytes for any number of workers, resuming, reading back, the command."""

from __future__ import annotations

import pytest
import torch
from made_up.command import command

from tore_fast.body import load_body
from tore_fast.data.synth import SynthGenerator, SynthSettings, SynthShards, write_shards

SETTINGS = SynthSettings(seed=3, size=48, shard_size=16)
COUNT = 40  # two whole shards and a half one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("synth")
    done = []
    assert write_shards(path, COUNT, SETTINGS, 1, done.append) == COUNT
    assert done == [0, 16, 16, 8]
    return path


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_two_workers_write_the_same_bytes(folder, tmp_path):
    write_shards(tmp_path, COUNT, SETTINGS, 2)
    assert contents(tmp_path) == contents(folder)


def test_goes_on_after_an_interruption(folder, tmp_path):
    class Stop(Exception):
        pass

    def stop_after_one(n):
        if n:
            raise Stop

    with pytest.raises(Stop):
        write_shards(tmp_path, COUNT, SETTINGS, 1, stop_after_one)
    assert len(SynthShards(tmp_path)) == 16
    (tmp_path / "shard-00001.npz").write_bytes(b"cut off")  # unreadable: written again
    done = []
    assert write_shards(tmp_path, COUNT, SETTINGS, 1, done.append) == 24
    assert done[0] == 16 and contents(tmp_path) == contents(folder)
    assert write_shards(tmp_path, COUNT, SETTINGS) == 0


def test_reading_back(folder):
    body = load_body("free")
    data = SynthShards(folder, body)
    assert len(data) == COUNT and data.settings == SETTINGS
    batch = data.batch([0, 17, 39])
    made = [SynthGenerator(body, 48, seed=3).batch(i, 16) for i in range(3)]
    for row, (b, r) in enumerate(((0, 0), (1, 1), (2, 7))):
        for key in ("pose", "betas", "camera", "joints2d", "box", "mask"):
            assert torch.equal(batch[key][row], made[b][key][r]), key
        torch.testing.assert_close(batch["vertices"][row], made[b]["vertices"][r], atol=2e-5, rtol=0)
        difference = (batch["images"][row].float() - made[b]["images"][r].float()).abs().mean()
        assert difference < 12  # JPEG of a noisy 48-pixel image
    seen = torch.cat([b["pose"][:, 0] for b in data.batches(8, seed=1)])
    assert len(seen.unique(dim=0)) == COUNT
    with pytest.raises(IndexError, match="0..39"):
        data[40]


def test_errors(folder, tmp_path):
    with pytest.raises(ValueError, match="other settings .seed 3"):
        write_shards(folder, COUNT, SynthSettings(seed=4, size=48, shard_size=16))
    with pytest.raises(ValueError, match="multiple of 16"):
        write_shards(tmp_path, 4, SynthSettings(shard_size=20))
    with pytest.raises(ValueError, match="at least 1"):
        write_shards(tmp_path, 0, SETTINGS)
    with pytest.raises(ValueError, match="no synth.json"):
        SynthShards(tmp_path)


def test_command(tmp_path, capsys):
    args = ("synth", "--out", tmp_path / "out", "--n", 5, "--size", 48, "--shard-size", 16)
    assert command(*args, "--seed", 3) == 0
    assert "made 5 in" in capsys.readouterr().out and len(SynthShards(tmp_path / "out")) == 5
    assert command(*args, "--seed", 9) == 2
    assert "other settings" in capsys.readouterr().err
