"""Files made to hurt: writes a corpus of them, and runs the readers of tore_fast over seeded mutations of good and
evil files.

    python tools/hostile.py write DIR                         # the corpus, for trying commands by hand
    python tools/hostile.py fuzz --seconds 1800               # every kind in turn; --kind images for one
    python tools/hostile.py fuzz --seconds 60 --seed 7 --keep DIR

A file may be read, or refused with one line that is a ValueError or OSError. Everything else fails: another
exception, a signal, more than LIMIT_S seconds, more than LIMIT_BYTES of memory, another program than ffmpeg, a
connection, a file written elsewhere. Cases are numbered; seed, kind and number make the same file again.
tests/test_hostile.py runs some seconds of each kind.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np

LIMIT_S = 20  # seconds a single file may take on a busy machine
LIMIT_BYTES = 6 << 30  # of address space beyond what the libraries have taken
KINDS = ("images", "weights", "pickles", "keypoints", "boxes", "videos")


# ---- good files and evil ones, by kind: {name: bytes}


def images() -> dict[str, bytes]:
    from PIL import Image

    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x8769] = 6, {0xA405: 35}
    out = {}
    for name, image, options in (
        ("a.jpg", colour, {"format": "JPEG", "exif": exif}),
        ("progressive.jpg", colour, {"format": "JPEG", "progressive": True}),
        ("cmyk.jpg", colour.convert("CMYK"), {"format": "JPEG"}),
        ("a.png", colour, {"format": "PNG", "exif": exif}),
        ("palette.png", colour.convert("P"), {"format": "PNG", "transparency": 0}),
        ("sixteen.png", Image.fromarray(rng.integers(0, 65535, (9, 9), dtype=np.uint16)), {"format": "PNG"}),
        ("a.gif", colour.convert("P"), {"format": "GIF"}),
        ("a.bmp", colour, {"format": "BMP"}),
        ("a.tiff", colour, {"format": "TIFF", "compression": "tiff_lzw"}),
        ("float.tiff", Image.fromarray(rng.random((9, 9), dtype=np.float32)), {"format": "TIFF"}),
        ("a.webp", colour, {"format": "WEBP"}),
        ("a.avif", colour, {"format": "AVIF"}),
        ("a.ppm", colour, {"format": "PPM"}),
    ):
        stream = BytesIO()
        try:
            image.save(stream, **options)
        except (KeyError, OSError, ValueError):  # Pillow built without it
            continue
        out[name] = stream.getvalue()
    out["holiday.jpg"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    big = bytearray(out["a.png"])
    big[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    big[29:33] = struct.pack(">I", zlib.crc32(bytes(big[12:29])))
    out["claims.png"] = bytes(big)
    return out


class _Runs:
    """A pickle that runs a command."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch code_ran",)


def weights() -> dict[str, bytes]:
    import torch
    from safetensors.torch import save

    state = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.float16), "epoch": 3}
    out = {}
    for name, value, options in (
        ("new.pt", state, {}),
        ("old.pth", state, {"_use_new_zipfile_serialization": False}),
        ("nested.ckpt", {"state_dict": state, "hyper": {"lr": 1e-3, "names": ["a", "b"]}}, {}),
        ("sparse.pt", {"a": torch.eye(4).to_sparse()}, {}),
        ("meta.pt", {"a": torch.empty(3, device="meta")}, {}),
        ("shared.pt", {"a": state["a.weight"], "b": state["a.weight"][1:]}, {}),
    ):
        stream = BytesIO()
        torch.save(value, stream, **options)
        out[name] = stream.getvalue()
    out["a.safetensors"] = save({"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)})
    out["claims.safetensors"] = struct.pack("<Q", 2**62) + b"{}"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    out["claims2.safetensors"] = struct.pack("<Q", len(header)) + header
    script = BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    out["script.pt"] = script.getvalue()
    stream = BytesIO()
    torch.save({"a": _Runs()}, stream)
    out["runs.pt"] = stream.getvalue()
    return out


def pickles() -> dict[str, bytes]:
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    body = {"v_template": rng.random((6, 3)), "J_regressor": sp.csc_matrix(np.eye(4)), "f": np.arange(6).reshape(2, 3)}
    out = {f"protocol{p}.pkl": pickle.dumps(body, protocol=p) for p in (2, 3, 4, 5)}
    out["objects.pkl"] = pickle.dumps(
        {"a": np.array([{"x": 1}, None, [2]], dtype=object), "b": np.float32(3)}, protocol=2
    )
    out["runs.pkl"] = pickle.dumps({"v_template": _Runs()})
    matrix = sp.csc_matrix(np.eye(4))
    matrix.indices[:] = 2**30
    out["far.pkl"] = pickle.dumps({"J_regressor": matrix})
    shared: list = []
    for _ in range(60):
        shared = [shared, shared]
    out["shared.pkl"] = pickle.dumps(shared)
    for name, options in (("a.npz", {}), ("objects.npz", {"o": np.array({"a": [1, 2]}, dtype=object)})):
        stream = BytesIO()
        np.savez_compressed(stream, x=rng.random((3, 4)), n=np.arange(5), **options)
        out[name] = stream.getvalue()
    stream = BytesIO()
    np.save(stream, rng.random((4, 17, 3)))
    out["a.npy"] = stream.getvalue()
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**11,)})
    out["claims.npy"] = stream.getvalue()
    out["bomb.npz"] = _bomb()
    return out


def _bomb() -> bytes:
    stream = BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("keypoints.npy", "w", force_zip64=True) as f,
    ):
        np.lib.format.write_array_header_1_0(f, {"descr": "<f8", "fortran_order": False, "shape": (1 << 25,)})
        for _ in range(256):
            f.write(bytes(1 << 20))
    return stream.getvalue()


def keypoints() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(100, 600, (6, 17, 2)), rng.uniform(0, 1, (6, 17, 1))], -1).round(2)
    flat = points.reshape(6, -1).tolist()
    coco = [{"image_id": f"{i}.jpg", "category_id": 1, "idx": i % 2, "keypoints": k} for i, k in enumerate(flat)]
    mmpose = [
        {"frame_id": i, "instances": [{"keypoints": p[:, :2].tolist(), "keypoint_scores": p[:, 2].tolist()}]}
        for i, p in enumerate(points)
    ]
    yolo = [{"keypoints": dict(zip(("x", "y", "visible"), p.T.tolist()))} for p in points]
    wide = rng.uniform(0, 500, (4, 25 * 3)).round(1).tolist()
    landmarks = [{"pose_landmarks": [{"x": 0.1 * j, "y": 0.5, "visibility": 1} for j in range(33)]}] * 3
    forms = {
        "plain.json": {"keypoints": points.tolist(), "width": 640, "height": 480, "fps": 30},
        "coco.json": coco,
        "annotations.json": {
            "images": [{"id": 1, "file_name": "1.jpg"}],
            "annotations": [{"image_id": 1, "keypoints": flat[0]}],
        },
        "mmpose.json": {"meta_info": {"dataset_name": "coco"}, "instance_info": mmpose},
        "yolo.json": yolo,
        "openpose.json": [{"people": [{"person_id": [-1], "pose_keypoints_2d": k}]} for k in wide],
        "mediapipe.json": landmarks,
        "nulls.json": {"keypoints": [None, *points[1:].tolist()]},
    }
    out = {name: json.dumps(value).encode() for name, value in forms.items()}
    out["deep.json"] = b"[" * 100_000
    out["digits.json"] = b'{"keypoints": [[[' + b"9" * 5000 + b", 1, 1]]]}"
    head = ",".join(f"{c}{j}" for j in range(17) for c in "xyc")
    rows = "\n".join(",".join(map(str, k)) for k in flat)
    out |= {"a.csv": f"{head}\n{rows}".encode(), "semicolon.csv": rows.replace(",", ";").replace(".", ",").encode()}
    for name, arrays in (("a.npz", {"keypoints": points}), ("custom.npz", _custom(points))):
        stream = BytesIO()
        np.savez(stream, **arrays)
        out[name] = stream.getvalue()
    stream = BytesIO()
    np.save(stream, points)
    out["a.npy"], out["bomb.npz"] = stream.getvalue(), _bomb()
    return out


def _custom(points: np.ndarray) -> dict:
    meta = {"layout_name": "coco", "video_metadata": {"a": {"w": 640, "h": 480}}}
    return {"positions_2d": np.array({"a": {"custom": [points[..., :2]]}}, object), "metadata": np.array(meta, object)}


def boxes() -> dict[str, bytes]:
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "person"}]}
    coco["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}]
    forms = {
        "images.json": {"a.jpg": [[1, 2, 30, 40]], "b.jpg": [1, 2, 30, 40]},
        "tracks.json": {"0": [[0, 1, 2, 30, 40], [1, 1, 2, 30, 40]]},
        "coco.json": coco,
        "results.json": [{"image_id": 3, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}],
    }
    out = {name: json.dumps(value).encode() for name, value in forms.items()}
    out["sizes.csv"] = b"frame,id,x,y,w,h\n0,1,10,10,60,120\n1,1,10,10,60,120\n"
    out["images.csv"] = b"image,x0,y0,x1,y1\na.jpg,1,2,30,40\n"
    out["mot.txt"] = b"1,1,10,20,60,120,1,-1,-1,-1\n2,1,10,20,60,120,1,-1,-1,-1\n"
    out["far.csv"] = b"0,0,1,1,1e30,1e30\n0,1,nan,inf,-inf,1\n"
    return out


def videos() -> dict[str, bytes]:
    import subprocess

    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError:
        return {}
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")):
            path = os.path.join(folder, name)
            words = ["-v", "error", "-y", "-f", "lavfi", "-i", "testsrc=d=0.4:s=48x32:r=15", "-c:v", codec, path]
            if subprocess.run([get_ffmpeg_exe(), *words], check=False, capture_output=True).returncode == 0:
                out[name] = Path(path).read_bytes()
    out["list.mp4"] = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
    out["hls.mp4"] = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    return out


FILES: dict[str, Callable[[], dict[str, bytes]]] = {
    "images": images,
    "weights": weights,
    "pickles": pickles,
    "keypoints": keypoints,
    "boxes": boxes,
    "videos": videos,
}


def doors(folder: Path, suffix: str) -> list[str]:
    """What is no file: a pipe, links to a device and to itself, a folder, names that cannot be."""
    os.mkfifo(folder / f"pipe{suffix}")
    os.symlink("/dev/zero", folder / f"zero{suffix}")
    os.symlink(f"loop{suffix}", folder / f"loop{suffix}")
    (folder / f"empty{suffix}").touch()
    made = [str(folder / f"{n}{suffix}") for n in ("pipe", "zero", "loop", "empty", "gone", "x" * 300, "a\0b")]
    return [*made, str(folder), "/dev/zero"]


# ---- mutations

_WORDS = [
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"9" * 400,
    b'"x"',
    b"[[[[]]]]",
]
_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)


def mutated(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """`data` damaged in one to eight ways."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if not out:
            return bytes(out)
        at, way = int(rng.integers(len(out))), int(rng.integers(9))
        if way == 0:
            out[at] = int(rng.integers(256))
        elif way == 1:
            out[at] ^= 1 << int(rng.integers(8))
        elif way == 2:
            del out[at:]
        elif way == 3:
            del out[at : at + int(rng.integers(1, 64))]
        elif way == 4:
            out[at:at] = out[at : at + int(rng.integers(1, 256))]
        elif way == 5:
            value = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
            out[at : at + 4] = struct.pack("<I" if rng.integers(2) else ">I", value)
        elif way == 6:
            other = others[int(rng.integers(len(others)))]
            out[at:] = other[min(at, len(other)) :]
        elif way == 7:
            out[at : at + 8] = struct.pack("<q" if rng.integers(2) else ">q", int(rng.integers(-(2**62), 2**62)))
        else:  # a token of a text
            end = at
            while end < len(out) and out[end : end + 1] not in (b",", b"]", b"}", b":", b"\n", b";"):
                end += 1
            out[at : min(end, at + 200)] = _WORDS[int(rng.integers(len(_WORDS)))]
    return bytes(out)


# ---- readers


def read(kind: str, path: str) -> None:
    """What the package does first with a file of this kind. What comes back must be usable."""
    if kind == "images":
        from tore_fast.io.exif import focal_from_exif
        from tore_fast.io.image import read_image, read_labels

        focal_from_exif(path)
        pixels = read_image(path)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        read_labels(path)
    elif kind == "weights":
        from tore_fast.io.weights import read_weights

        read_weights(path)
    elif kind == "pickles":
        from tore_fast.io import safe_pickle

        reader = {".npz": safe_pickle.read_npz, ".npy": safe_pickle.read_npy}.get(
            Path(path).suffix, safe_pickle.read_pickle
        )
        try:
            reader(path)
        except zipfile.BadZipFile as e:  # documented: callers make a line of it
            raise ValueError(str(e)) from None
    elif kind == "keypoints":
        from tore_fast.data.keypoints import read_keypoints, read_people

        for clip in (read_keypoints(path, width=640, height=480), *read_people(path, width=640, height=480)):
            assert np.isfinite(clip.keypoints).all() and len(clip.frames) == len(clip.keypoints) > 0
    elif kind == "boxes":
        from tore_fast.data.boxes import read_boxes
        from tore_fast.io.video import TrackBoxes

        refused = 0
        for reader in (read_boxes, TrackBoxes.read):
            try:
                reader(path)
            except ValueError as e:
                refused += 1
                _check_line(e)
        if refused == 2:
            raise ValueError("refused")
    else:
        from tore_fast.io.video import open_video

        video = open_video(path)
        assert 0 < video.fps < 1e9 and np.isfinite(video.times).all()
        for _, frame in zip(range(40), video.frames()):
            assert frame[1].ndim == 3


def _check_line(error: BaseException) -> None:
    text = str(error)
    if "\n" in text or len(text) > 1500 or not text:
        raise AssertionError(f"not one line: {text[:300]!r}")


def _watch(event: str, args: tuple) -> None:
    """Audit hook: what no reader may do."""
    if event in ("os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo"):
        raise AssertionError(f"{event} {str(args)[:200]}")
    if event == "subprocess.Popen" and "ffmpeg" not in os.path.basename(str(args[0])):
        raise AssertionError(f"{event} {str(args)[:200]}")


def cases(kind: str, seed: int, first: int, seconds: float, path: str, report: Callable[[str], None]) -> None:
    """Runs cases from `first` on until the time is over; a line of JSON for each that fails, and at the end the
    counts."""
    files = FILES[kind]()
    names, data = list(files), list(files.values())
    signal.signal(signal.SIGALRM, _too_long)
    for blob, name in zip(data[:4], names):  # good ones: the libraries take their memory and look for their parts
        read_once(kind, blob, Path(path), name)
    sys.addaudithook(_watch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))
    counts = {"read": 0, "refused": 0}
    end, number = time.monotonic() + seconds, first
    while time.monotonic() < end or number < len(names):
        rng = np.random.default_rng([seed, number])
        if number < len(names):  # as they are
            name, blob = names[number], data[number]
        else:
            k = int(rng.integers(len(names)))
            name, blob = names[k], mutated(data[k], data, rng)
        report(json.dumps({"at": number}))
        outcome = read_once(kind, blob, Path(path), name)
        if outcome in counts:
            counts[outcome] += 1
        else:
            report(json.dumps({"failed": number, "name": name, "why": outcome}))
        number += 1
    report(json.dumps({"done": number, **counts}))


def _too_long(number: int, frame: object) -> None:
    raise AssertionError(f"more than {LIMIT_S} s")


def read_once(kind: str, blob: bytes, folder: Path, name: str) -> str:
    """ "read", "refused", or what went wrong."""
    file = folder / f"case{Path(name).suffix}"
    file.write_bytes(blob)
    signal.alarm(LIMIT_S)
    try:
        read(kind, str(file))
        return "read"
    except (ValueError, OSError) as e:
        try:
            _check_line(e)
        except AssertionError as wrong:
            return str(wrong)
        return "refused"
    except BaseException as e:  # noqa: BLE001 (that is the question)
        return f"{type(e).__name__}: {str(e)[:300]}"
    finally:
        signal.alarm(0)
        file.unlink()


def fuzz(kind: str, seconds: float, seed: int = 0, keep: Path | None = None) -> dict:
    """Cases of one kind in child processes; a child that dies is followed by another one behind the case that killed
    it.

    Returns:
        {"kind", "cases", "read", "refused", "failed": [{"number", "name", "why"}]}
    """
    total: dict = {"kind": kind, "cases": 0, "read": 0, "refused": 0, "failed": []}
    end, first = time.monotonic() + seconds, 0
    while first == 0 or (time.monotonic() < end and len(total["failed"]) < 50):
        with tempfile.TemporaryDirectory() as folder:
            lines, status = _child(kind, seed, first, max(0.1, end - time.monotonic()), folder)
            if os.path.exists(os.path.join(folder, "code_ran")):
                total["failed"].append({"number": first, "name": "", "why": "code of a file ran"})
        at, done = first, False
        for line in lines:
            at = line.get("at", at)
            if "failed" in line:
                total["failed"].append({"number": line["failed"], "name": line["name"], "why": line["why"]})
            if "done" in line:
                done = True
                total["read"] += line["read"]
                total["refused"] += line["refused"]
        total["cases"] += at - first + 1
        if not done:
            total["failed"].append({"number": at, "name": "", "why": f"the process ended with status {status}"})
        first = at + 1
    if keep is not None:
        for case in total["failed"]:
            _keep(keep, kind, seed, case)
    return total


def _child(kind: str, seed: int, first: int, seconds: float, folder: str) -> tuple[list[dict], int]:
    log = os.path.join(folder, "log")
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.chdir(folder)
            with open(log, "w") as out:

                def report(line: str) -> None:
                    out.write(line + "\n")
                    out.flush()

                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                cases(kind, seed, first, seconds, folder, report)
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(process, 0)[1]
    lines = Path(log).read_text().splitlines() if os.path.exists(log) else []
    return [json.loads(line) for line in lines if line.endswith("}")], status


def _keep(folder: Path, kind: str, seed: int, case: dict) -> None:
    """Writes a failed case again."""
    folder.mkdir(parents=True, exist_ok=True)
    files = FILES[kind]()
    names, data = list(files), list(files.values())
    rng = np.random.default_rng([seed, case["number"]])
    k = case["number"] if case["number"] < len(names) else int(rng.integers(len(names)))
    blob = data[k] if case["number"] < len(names) else mutated(data[k], data, rng)
    (folder / f"{kind}_{case['number']}_{names[k]}").write_bytes(blob)


def write(folder: Path) -> int:
    """The corpus: every file as it is, fifty mutations of each kind, and what is no file."""
    count = 0
    for kind in KINDS:
        files = FILES[kind]()
        names, data = list(files), list(files.values())
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, blob in files.items():
            (folder / kind / name).write_bytes(blob)
        for number in range(50):
            rng = np.random.default_rng([0, 1000 + number])
            k = int(rng.integers(len(names)))
            (folder / kind / f"m{number}_{names[k]}").write_bytes(mutated(data[k], data, rng))
        count += len(names) + 50
    (folder / "doors").mkdir(exist_ok=True)
    return count + len(doors(folder / "doors", ".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=("write", "fuzz"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=60, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of failed cases")
    args = parser.parse_args()
    if args.job == "write":
        if args.folder is None:
            parser.error("write needs a folder")
        print(f"{write(args.folder)} files in {args.folder}")
        return
    failed = 0
    for kind in (args.kind,) if args.kind else KINDS:
        found = fuzz(kind, args.seconds, args.seed, args.keep)
        failed += len(found["failed"])
        print(json.dumps(found), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
