"""Batch prediction: nothing lost, nothing twice, whatever is killed; bad and deadly images; tars, folders, boxes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from made_up.batch_model import Factory
from made_up.sets import image, jpeg, write_tar
from PIL import Image

from tore_fast.cli import main
from tore_fast.data.image_list import list_images
from tore_fast.io.image import ImageError
from tore_fast.pipelines.batch import BatchConfig, ModelFactory, failures, predict_images, results, run, work
from tore_fast.pipelines.batch_plan import BatchError, BatchFolder

TESTS = Path(__file__).resolve().parents[1]
QUIET = {"log": lambda _: None}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """37 images: two tars and a folder with a sub-folder; one is damaged."""
    root = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for tar in range(2):
        members = []
        for i in range(15):
            data = jpeg(image(rng, 40, 48))
            members += [(f"part/{i:03d}.jpg", b"damaged" if (tar, i) == (1, 4) else data), (f"part/{i:03d}.cls", b"7")]
        write_tar(root / f"{tar:06d}.tar", members)
    for i in range(7):
        path = root / "photos" / ("deep" if i > 4 else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(rng, 30 + i, 40)).save(path)
    return root


def everything(out) -> dict[str, tuple]:
    """Image -> its error or its people's numbers; fails where a image is there twice."""
    table: dict[str, tuple] = {}
    for part in results(out):
        for i, name in enumerate(part["source"]):
            mine = part["image_index"] == i
            assert name not in table
            table[str(name)] = (
                str(part["error"][i]),
                part["joints_3d"][mine],
                part["box"][mine],
                part["vertices_coarse"][mine],
            )
    return table


def same(a: dict, b: dict) -> str:
    """ "" where both hold the same images and numbers (up to the rounding of other batches), else what differs."""
    if a.keys() != b.keys():
        return f"images: {sorted(a.keys() ^ b.keys())}"
    for name in a:
        if a[name][0] != b[name][0]:
            return f"{name}: {a[name][0]!r}, {b[name][0]!r}"
        for x, y in zip(a[name][1:], b[name][1:]):
            if x.shape != y.shape or not np.allclose(x, y, rtol=1e-4, atol=1e-4):
                return f"{name}: {x.shape}, {y.shape}, {np.abs(x - y).max() if x.shape == y.shape else ''}"
    return ""


@pytest.fixture(scope="module")
def expected(shards, tmp_path_factory):
    """All images by one worker in this process."""
    out = tmp_path_factory.mktemp("expected")
    folder = BatchFolder(out)
    folder.make(list_images([shards / "{000000..000001}.tar", shards / "photos"]), 5, {})
    work(folder, Factory(), BatchConfig(unit_images=5))
    return everything(out)


def test_one_worker(shards, expected):
    assert len(expected) == 37
    errors = {k: v[0] for k, v in expected.items() if v[0]}
    (name,) = errors
    assert name.endswith("000001.tar:part/004.jpg") and "not an image file that is read here" in errors[name]
    assert all(len(v[1]) == (0 if k == name else 1) for k, v in expected.items())
    # the numbers are the pipeline's own
    path = next(p for p in list_images([shards / "photos"]) if p.name.endswith("deep/5.png"))
    alone = Factory()(0).predict(path.path)[0].people[0]
    np.testing.assert_allclose(expected[path.name][1][0], alone.joints_3d, atol=1e-5)
    assert len({v[1].tobytes() for v in expected.values()}) == 37  # every image has its own result


def test_kill_workers(shards, expected, tmp_path):
    """Workers are killed with signal 9 while they work; the run replaces them and ends with every image once."""
    killed = []

    def kill_two() -> None:
        deadline = time.monotonic() + 120
        while len(killed) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            for claim in (tmp_path / "claims").glob("unit-*.json"):
                pid = _pid(claim)
                if pid and pid not in killed and len(killed) < 2:
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_two)
    thread.start()
    lines = []
    summary = run([shards], tmp_path, Factory(delay_s=0.15), BatchConfig(unit_images=5), workers=2, log=lines.append)
    thread.join()
    assert len(killed) == 2 and summary.deaths == 2 and sum("died" in line for line in lines) == 2
    assert (summary.images, summary.people, summary.failed, summary.fresh_images) == (37, 36, 1, 37)
    assert summary.images_per_s > 0 and any("images/s" in line for line in lines)
    assert same(everything(tmp_path), expected) == ""
    assert BatchFolder(tmp_path).verify() == {"images": 37, "people": 36, "failed": 1}
    assert not list((tmp_path / "results").glob(".*"))


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from made_up.batch_model import Factory
from tore_fast.pipelines.batch import BatchConfig, run
if __name__ == "__main__":
    run([sys.argv[1]], sys.argv[2], Factory(delay_s=0.3), BatchConfig(unit_images=5), workers=1, engine=sys.argv[3])
"""


def driver(tmp_path, shards, engine="processes", **environment):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(tests=str(TESTS)))
    return subprocess.Popen(
        [sys.executable, str(script), str(shards), str(tmp_path / "out"), engine],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
    )


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_kill_everything_and_go_on(shards, expected, tmp_path):
    """The whole run is killed, launcher first; the same call later does only what is left."""
    process = driver(tmp_path, shards)
    folder = BatchFolder(tmp_path / "out")
    wait_for(lambda: folder.results.is_dir() and len(folder.done()) >= 2)
    process.kill()
    process.wait()
    for claim in folder.claims.glob("unit-*.json"):  # the orphaned worker, in the middle of a unit
        if pid := _pid(claim):
            os.kill(pid, signal.SIGKILL)
    done, times = folder.done(), {u: folder.result_path(u).stat().st_mtime_ns for u in folder.done()}
    assert 2 <= len(done) < 8
    with pytest.raises(BatchError, match="units are not done"):
        folder.verify()
    summary = run([shards], folder.root, Factory(), BatchConfig(unit_images=5), **QUIET)
    assert summary.fresh_images == 37 - 5 * len(done) and same(everything(folder.root), expected) == ""
    assert all(
        folder.result_path(u).stat().st_mtime_ns == t for u, t in times.items()
    )  # finished units were not touched
    again = run([shards], folder.root, Factory(), BatchConfig(unit_images=5), **QUIET)
    assert again.fresh_images == 0


def test_torchrun_processes_share_the_work(shards, expected, tmp_path):
    """Independent processes, as a launcher starts them; one is killed for good, the other finishes its unit too."""
    processes = [driver(tmp_path, shards, "torchrun", RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE="2") for r in range(2)]
    folder = BatchFolder(tmp_path / "out")
    wait_for(
        lambda: folder.claims.is_dir() and any(_pid(c) == processes[1].pid for c in folder.claims.glob("unit-*.json"))
    )
    processes[1].kill()
    assert processes[0].wait(180) == 0 and processes[1].wait() == -signal.SIGKILL
    assert same(everything(folder.root), expected) == ""


def _pid(claim: Path) -> int | None:
    try:
        return json.loads(_text(claim))["pid"]
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_a_image_that_kills_is_found(tmp_path):
    """A image that takes the process down every time ends as an error; its neighbours are done."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(6):
        pixels = np.full((40, 40, 3), 255, np.uint8) if i == 3 else image(rng, 40, 40) // 2
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    summary = run(
        [tmp_path / "in"], tmp_path / "out", Factory(deadly=True), BatchConfig(boxes="full", unit_images=6), **QUIET
    )
    assert (summary.deaths, summary.people, summary.failed) == (2, 5, 1)  # once as a unit, once alone
    errors = {Path(k).name: v[0] for k, v in everything(tmp_path / "out").items() if v[0]}
    assert errors == {"3.png": "the process died on this image"}


def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path, capfd):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(BatchError, match="could not load the model"):
        run([tmp_path / "a.png"], tmp_path / "out", ModelFactory("no_such_model"), **QUIET)
    assert "no model 'no_such_model'" in capfd.readouterr().err
    assert not list((tmp_path / "out" / "claims").iterdir())  # no unit is blamed for it


def one_unit(tmp_path) -> BatchFolder:
    folder = BatchFolder(tmp_path)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    folder.make(list_images([tmp_path / "a.png"]), 1, {})
    return folder


def left_by_the_dead(folder: BatchFolder, **state) -> None:
    """A claim file as a killed worker leaves it: nobody holds its lock."""
    (folder.claims / "unit-000000.json").write_text(json.dumps({"pid": 1, "deaths": 0, "at": -1, "bad": []} | state))


def test_claims(tmp_path):
    folder = one_unit(tmp_path)
    mine = folder.claim(0)
    assert mine is not None and not mine.careful and folder.claim(0) is None  # we live
    mine.release()
    assert not list(folder.claims.iterdir())
    left_by_the_dead(folder, deaths=1, at=7, bad=[3])
    taken = folder.claim(0)
    assert taken.careful and taken.deaths == 2 and taken.bad == [3, 7] and folder.claim(0) is None
    taken.release()
    (folder.claims / "unit-000000.json").write_text("half a not")  # killed while writing
    folder.claim(0).release()
    # two results for one unit: the first stays, and a done unit cannot be claimed
    one = {"source": np.array(["x"])}
    assert folder.commit(0, one) and not folder.commit(0, {"source": np.array(["y"])})
    assert folder.load(0)["source"].tolist() == ["x"] and folder.claim(0) is None
    assert not list(folder.results.glob(".*"))


def test_many_claim_one_unit(tmp_path):
    """Of many takers of a dead worker's unit exactly one gets it."""
    folder = one_unit(tmp_path)
    for _ in range(100):
        left_by_the_dead(folder)
        got, barrier = [], threading.Barrier(8)

        def take(got=got, barrier=barrier):
            barrier.wait()
            got.append(folder.claim(0))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        held = [c for c in got if c is not None]
        assert len(held) == 1
        held[0].release()


def test_an_image_does_not_depend_on_its_neighbours(tmp_path):
    """One by one (as after a death) and in a unit: the same crops, and numbers up to the last bits."""
    for i in range(5):
        Image.fromarray(image(np.random.default_rng(i), 40 + 5 * i, 48)).save(tmp_path / f"{i}.png")
    images, pipeline = list_images([tmp_path]), ModelFactory("tore_default", device="cpu", batch_size=4, threads=1)()
    together = predict_images(images, pipeline, "model", None)
    for one, result in zip(images, together):
        (alone,) = predict_images([one], pipeline, "model", None)
        assert alone.people[0].crop == result.people[0].crop
        np.testing.assert_allclose(alone.people[0].vertices, result.people[0].vertices, atol=1e-5)


def test_boxes(tmp_path):
    rng = np.random.default_rng(0)
    box = [5.0, 6.0, 25.0, 36.0]
    write_tar(
        tmp_path / "a.tar",
        [
            ("one.jpg", jpeg(image(rng, 40, 48))),
            ("one.json", json.dumps({"boxes": [box, [0, 0, 20, 20]]}).encode()),
            ("two.jpg", jpeg(image(rng, 40, 48))),
            ("three.jpg", jpeg(image(rng, 40, 48))),
            ("three.json", b"[]"),
            ("four.jpg", jpeg(image(rng, 40, 48))),
            ("four.json", json.dumps({"boxes": [[9, 9, 1, 1]]}).encode()),
        ],
    )
    images, pipeline = list_images([tmp_path / "a.tar"]), Factory()(0)
    one, two, three, four = predict_images(images, pipeline, "sidecar", None)
    assert [p.box for p in one.people] == [tuple(box), (0, 0, 20, 20)] and two.people[0].box_source == "auto"
    assert '"boxes"' in three.error and "four.jpg: box 0: the box" in four.error
    table = {"two.jpg": [tuple(box)]}
    one, two, *_ = predict_images(images, pipeline, "table", table)
    assert one.people[0].box_source == "auto" and [p.box for p in two.people] == [tuple(box)]


def test_the_default_gives_what_predict_gives(tmp_path):
    from tore_fast.pipelines.demo_image import ASSETS
    from tore_fast.pipelines.photographs import image_pipeline

    (tmp_path / "in").mkdir()
    with Image.open(ASSETS / "portrait.jpg") as portrait:
        exif = portrait.getexif()
        exif.get_ifd(0x8769)[0xA405] = 35  # 35 mm equivalent of the focal length
        portrait.save(tmp_path / "in" / "a.jpg", exif=exif)
    Image.new("RGB", (64, 48)).save(tmp_path / "in" / "b.png")
    factory = ModelFactory(device="cpu", threads=1)
    folder = BatchFolder(tmp_path / "out")
    folder.make(list_images([tmp_path / "in"]), 1, factory.identity())  # a unit each
    work(folder, factory, BatchConfig())
    (unit, empty) = results(tmp_path / "out")
    (want,) = image_pipeline(device="cpu").predict([tmp_path / "in" / "a.jpg"])
    (person,) = want.people
    assert unit["focal_source"].tolist() == [person.focal_source] == ["exif"] and unit["believed"].tolist() == [True]
    for name in ("poses", "trans", "focal_px", "landmarks_2d", "visibility", "score", "joints_3d"):
        np.testing.assert_allclose(unit[name][0], getattr(person, name), rtol=1e-4, atol=1e-3)
    assert set(unit) == set(empty) and empty["believed"].shape == (0,) and empty["visibility"].shape == (0, 33)


def test_hands_and_units_without_people_have_arrays_that_join(tmp_path):
    for i, name in enumerate("ab"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(image(np.random.default_rng(i), 40, 48)) if i else b"damaged")
    out, factory = tmp_path / "out", ModelFactory("tore_default_hand", device="cpu", threads=1)
    folder, config = BatchFolder(out), BatchConfig(unit_images=1, save_vertices=True)
    folder.make(list_images([tmp_path / "a.jpg", tmp_path / "b.jpg"]), 1, {})
    work(folder, factory, config)
    units = list(results(out))
    shapes = {
        k: np.concatenate([u[k] for u in units]).shape
        for k in ("joints_3d", "joints_2d", "vertices_coarse", "vertices", "box")
    }
    assert shapes == {
        "joints_3d": (1, 21, 3),
        "joints_2d": (1, 21, 2),
        "vertices_coarse": (1, 195, 3),
        "vertices": (1, 778, 3),
        "box": (1, 4),
    }
    assert ["not an image file" in e for e in failures(out)] == [True]


def test_wrong_inputs(tmp_path, shards):
    with pytest.raises(ImageError, match="expected a tar, a folder or an image"):
        run([tmp_path / "nothing"], tmp_path / "out", Factory(), **QUIET)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no image in it"):
        run([tmp_path / "empty"], tmp_path / "out", Factory(), **QUIET)
    with pytest.raises(ImageError, match="no input"):
        run([], tmp_path / "out", Factory(), **QUIET)
    with pytest.raises(ValueError, match="engine must be one of"):
        run([shards], tmp_path / "out", Factory(), engine="cloud", **QUIET)
    folder = BatchFolder(tmp_path / "begun")
    folder.make(list_images([shards / "photos"]), 256, {"boxes": "auto", "save_vertices": False, "model": "shifted"})
    with pytest.raises(BatchError, match="begun with boxes = 'auto', now it is 'full'"):
        run([shards / "photos"], folder.root, Factory(), BatchConfig(boxes="full"), **QUIET)
    with pytest.raises(BatchError, match="begun on 7 images, the inputs now hold 37"):
        run([shards], folder.root, Factory(), **QUIET)
    # the same image named twice counts once
    assert len(list_images([shards / "photos", shards / "photos" / "0.png"])) == 7


def test_verb(shards, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tore_fast.pipelines.batch.ModelFactory", lambda *a, **k: Factory())
    command = [
        "batch",
        str(shards),
        "--out",
        str(tmp_path / "out"),
        "--unit",
        "20",
        "--save-vertices",
        "--engine",
        "torchrun",
    ]
    with pytest.raises(SystemExit) as e:
        main(command)
    text, complaints = capsys.readouterr()
    assert e.value.code == 1 and "37 images, 36 people, 1 failed" in text and "images/s" in text
    assert "tore-fast batch: " in complaints and "part/004.jpg: not an image file that is read here" in complaints
    assert next(results(tmp_path / "out"))["vertices"].shape == (20, 6890, 3)
    assert same(everything(tmp_path / "out"), expected) == ""
    for code, arguments in ((0, [str(shards), "--verify", "--out", str(tmp_path / "out")]), (2, ["nowhere.tar"])):
        with pytest.raises(SystemExit) as e:
            main(["batch", *arguments])
        assert e.value.code == code
    captured = capsys.readouterr()
    assert "every image is there once" in captured.out and "nowhere.tar: not there" in captured.err


def test_ray_with_a_killed_worker(shards, expected, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is an optional extra (tore_fast[scale])")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))  # actors import the test's factory
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray lowers its workers by 15, which starves them on a busy machine
    killed = []

    def kill_one() -> None:
        deadline = time.monotonic() + 200
        while not killed and time.monotonic() < deadline:
            time.sleep(0.05)
            for claim in (tmp_path / "out" / "claims").glob("unit-*.json"):
                if (pid := _pid(claim)) and not killed:
                    killed.append(pid)
                    os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        summary = run(
            [shards],
            tmp_path / "out",
            Factory(delay_s=0.2),
            BatchConfig(unit_images=5),
            workers=1,
            engine="ray",
            **QUIET,
        )
    finally:
        ray.shutdown()
        thread.join()
    assert killed and summary.images == 37 and same(everything(tmp_path / "out"), expected) == ""
