"""Box files as people have them: headers, MOT, COCO; bad boxes cost themselves."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from tore_fast.data.boxes import BoxFileError, boxes_of, read_boxes, unmatched
from tore_fast.data.detect import BoxTracker, TableTracker, as_detections
from tore_fast.io.image import ImageError, check_boxes
from tore_fast.io.video import TrackBoxes

WANT = {3: {1: (10.0, 20.0, 70.0, 140.0)}}
VIDEOS = {
    "corners.csv": "frame,track,x0,y0,x1,y1\n3,1,10,20,70,140\n",
    "bare.csv": "3,1,10,20,70,140\n",
    "sizes.csv": "frame,id,x,y,w,h\n3,1,10,20,60,120\n",
    "mixed.csv": "conf,w,h,x,y,track_id,frame\n0.9,60,120,10,20,1,3\n",
    "left.csv": "frame;id;bb_left;bb_top;bb_width;bb_height\n3;1;10,0;20,0;60,0;120,0\n",
    "centres.csv": "frame,id,cx,cy,w,h\n3,1,40,80,60,120\n",
    "bom.csv": "\ufeffframe,track,xmin,ymin,xmax,ymax\n3,1,10,20,70,140\n",
    "mot.txt": "4,1,10,20,60,120,1,-1,-1,-1\n",
    "coco.json": json.dumps([{"image_id": 3, "category_id": 1, "track_id": 1, "bbox": [10, 20, 60, 120], "score": 1}]),
    "own.json": json.dumps({"1": [[3, 10, 20, 70, 140]]}),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(tmp_path, name):
    (tmp_path / name).write_text(VIDEOS[name], encoding="utf-8")
    assert TrackBoxes.read(tmp_path / name)._table == WANT


def test_images(tmp_path):
    coco = {
        "images": [{"id": 1, "file_name": "grey.jpg"}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    coco["annotations"] = [{"image_id": 1, "category_id": c, "bbox": [20, 10, 100, 200]} for c in (1, 18)]
    results = [{"image_id": 42, "category_id": 1, "bbox": [20, 10, 100, 200], "score": 0.9}]
    for name, text, image in (
        ("a.json", json.dumps(coco), "x/grey.jpg"),
        ("r.json", json.dumps(results), "x/000000000042.jpg"),
        ("a.csv", "image,x,y,w,h\ngrey.jpg,20,10,100,200\n", "grey.jpg"),
        ("b.csv", "grey.jpg,20,10,120,210\n", "grey.jpg"),
        ("c.csv", "filename,width,height,xmin,ymin,xmax,ymax\ngrey.jpg,640,480,20,10,120,210\n", "grey.jpg"),
    ):
        (tmp_path / name).write_text(text)
        table = read_boxes(tmp_path / name)
        assert boxes_of(table, image) == [(20, 10, 120, 210)], name
        assert unmatched(table, [image]) == [] and len(unmatched(table, ["other.jpg"])) == 1


def test_bad_boxes_cost_themselves(tmp_path):
    good, bad = check_boxes([[0, 0, 9, 9], [0, 0, 1e30, 1e30], [500, 0, 600, 9], "box"], 100, 100, "a.jpg")
    assert good == [(0, 0, 9, 9)] and len(bad) == 3 and "a.jpg: box 1" in bad[0] and "outside the 100x100" in bad[1]
    with pytest.raises(ImageError, match="a.jpg: box 0.*and 1 more"):
        check_boxes([[500, 0, 600, 9]] * 2, 100, 100, "a.jpg")
    (tmp_path / "b.csv").write_text("0,0,1,1,50,50\n0,1,500,1,550,50\n1,0,1,1,1e30,50\n9,0,1,1,50,50\n")
    tracker = TableTracker(TrackBoxes.read(tmp_path / "b.csv"), "b.csv")
    frame = np.zeros((60, 80, 3), np.uint8)
    assert tracker(0, frame) == {0: (1, 1, 50, 50)} and tracker(1, frame) == {}
    assert ["frame 0, track 1" in p or "frame 1, track 0" in p for p in tracker.problems] == [True, True]
    assert tracker.unused() == [9]


def test_files_without_tracks_are_tracked(tmp_path):
    rows = [{"image_id": i, "bbox": [x + i, 5, 20, 40]} for i in range(4) for x in ((10, 50) if i % 2 else (50, 10))]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    tracker = TableTracker(TrackBoxes.read(tmp_path / "b.json"), "b.json")
    frame = np.zeros((60, 80, 3), np.uint8)
    seen = [tracker(i, frame) for i in range(4)]
    assert [round(s[0][0]) for s in seen] == [50, 51, 52, 53] and [round(s[1][0]) for s in seen] == [10, 11, 12, 13]


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.json", "{"),
        ("a.json", "3"),
        ("a.json", "[" * 100_000),
        ("a.json", '[{"bbox": [1, 2, 3]}]'),
        ("a.json", '[{"bbox": [1, 2, 3, "x"]}, 3]'),
        ("a.json", '{"a.jpg": 3}'),
        ("a.csv", "image,a,b\nx,1,2\n"),
        ("a.csv", "frame,track,x,y,w,h\n1e30,1,1,2,3,4\n"),
        ("a.csv", "frame,track,x,y,w,h\n1\n"),
        ("a.csv", "image,x0,y0,x1,y1\na.jpg\n"),
        ("a.csv", "\x00\xff"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    for read, error in ((read_boxes, BoxFileError), (TrackBoxes.read, ImageError)):
        try:
            read(tmp_path / name)
        except error as e:
            assert "\n" not in str(e) and len(str(e)) < 500 and name in str(e)


def test_doors(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", "/dev/zero", tmp_path, "x" * 300):
        for read, error in ((read_boxes, BoxFileError), (TrackBoxes.read, ImageError)):
            with pytest.raises(error, match="box file"):
                read(path)


def test_what_detectors_return():
    """Arrays and tensors of four to six columns, nothing, gradients; a failure costs its frame."""
    import torch

    shape = (60, 80)
    for value in (torch.tensor([[1.0, 2, 30, 40, 0.9, 0], [1, 2, 30, 40, 0.9, 7]]), np.array([[1, 2, 30, 40, 0.9]])):
        found = as_detections(value, shape)
        assert found.boxes.tolist() == [[1, 2, 30, 40]] and found.scores.tolist() == pytest.approx([0.9])
    assert len(as_detections(torch.ones(1, 4, requires_grad=True), shape).boxes) == 1
    for nothing in (None, [], np.zeros((0, 5)), torch.zeros(0, 6)):
        assert len(as_detections(nothing, shape).boxes) == 0
    for wrong in ("boxes", [[1, 2, 3]], {"b": 3}, [[float("nan"), 2, 3, 4]], [[1, 2], [3]]):
        with pytest.raises(ValueError, match="detector"):
            as_detections(wrong, shape)

    def explodes(frame):
        raise RuntimeError("exploded")

    tracker = BoxTracker(explodes)
    assert tracker(4, np.zeros((60, 80, 3), np.uint8)) == {}
    assert tracker.problems == ["frame 4: the detector failed (RuntimeError: exploded)"]


def test_integers_beyond_64_bits(tmp_path):
    (tmp_path / "b.json").write_text('{"0": [[0, 1, 2, 30, 40], [1, 1, -' + "9" * 290 + ", 30, 40]]}")
    tracker = TableTracker(TrackBoxes.read(tmp_path / "b.json"), "b.json")
    frame = np.zeros((60, 80, 3), np.uint8)
    assert tracker(0, frame) == {0: (1, 2, 30, 40)} and tracker(1, frame) == {}
    assert len(tracker.problems) == 1 and "no pixels" in tracker.problems[0]
