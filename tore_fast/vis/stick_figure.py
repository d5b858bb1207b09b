"""Lifted poses as moving stick figures: one HTML file that plays and turns in any browser, a GIF or an MP4.

In: poses [T, 17, 3] in metres, camera axes (x right, y down, z forward). Out: a file. Called by cli/lift.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..geometry.skeleton import H36M17
from ..io import video
from ..io.atomic import replacing, write_text

_COLOURS = {"left": "#1f77b4", "right": "#d62728", "middle": "#444444"}
BONES = [
    (p, j, "left" if j in H36M17.left else "right" if j in H36M17.right else "middle")
    for j, p in enumerate(H36M17.parents)
    if p >= 0
]

_PAGE = """<!doctype html><meta charset="utf-8"><title>%(title)s</title>
<style>body{font:14px sans-serif;margin:1em}canvas{border:1px solid #ccc;cursor:grab;touch-action:none}</style>
<h3>%(title)s</h3><canvas id="c" width="640" height="640"></canvas><br>
<button id="p">pause</button> <input id="t" type="range" min="0" max="0" style="width:460px"> <span id="f"></span>
<p>Drag to turn. Blue: left side, red: right side. %(note)s</p>
<script>
const P=%(poses)s, B=%(bones)s, C=%(colours)s, fps=%(fps)s;
const c=document.getElementById("c"), g=c.getContext("2d"), s=document.getElementById("t"), f=document.getElementById("f");
let yaw=0, pitch=0, frame=0, on=true, last=0; s.max=P.length-1;
let R=0.01; for(const q of P) for(let i=0;i<51;i+=3) R=Math.max(R, Math.hypot(q[i],q[i+1],q[i+2]));
function at(q,j){const x=q[3*j],y=q[3*j+1],z=q[3*j+2], a=Math.cos(yaw),b=Math.sin(yaw), d=Math.cos(pitch),e=Math.sin(pitch);
 const u=a*x+b*z, w=-b*x+a*z; return [320+u*290/R, 320+(d*y-e*w)*290/R];}
function draw(){const q=P[frame]; g.clearRect(0,0,640,640); g.lineWidth=5; g.lineCap="round";
 for(const [i,j,k] of B){const a=at(q,i), b=at(q,j); g.strokeStyle=C[k]; g.beginPath(); g.moveTo(...a); g.lineTo(...b); g.stroke();}
 s.value=frame; f.textContent=frame+" / "+(P.length-1);}
function loop(t){if(!on || t-last>1000) last=t; const n=Math.floor((t-last)*fps/1000+0.01);
 if(n>0){frame=(frame+n)%%P.length; last+=n*1000/fps; draw();} requestAnimationFrame(loop);}
document.getElementById("p").onclick=e=>{on=!on; e.target.textContent=on?"pause":"play";};
s.oninput=()=>{frame=+s.value; draw();};
c.onpointermove=e=>{if(e.buttons){yaw+=e.movementX/150; pitch+=e.movementY/150; draw();}};
draw(); requestAnimationFrame(loop);
</script>
"""


def write_html(path: str | Path, poses: np.ndarray, fps: float, title: str = "lifted pose", note: str = "") -> Path:
    """A page without any outside resource; millimetre precision."""
    import html

    path = Path(path)
    flat = json.dumps(np.asarray(poses, np.float64).reshape(len(poses), -1).round(3).tolist(), separators=(",", ":"))
    parts = {"title": html.escape(title), "note": html.escape(note), "poses": flat, "fps": json.dumps(float(fps))}
    write_text(path, _PAGE % {**parts, "bones": json.dumps(BONES), "colours": json.dumps(_COLOURS)})
    return path


def write_gif(path: str | Path, poses: np.ndarray, fps: float, size: int = 320) -> Path:
    """Front view (left) and side view (right) as an animated GIF at the clip's speed, at most 25 images per second.

    GIF counts time in hundredths of a second, so the poses shown are those of its own clock.
    """
    path = Path(path)
    delay_ms = 10 * round(100 / min(fps, 25.0))
    shown = np.arange(0, max(len(poses) * 1000 / fps, 1), delay_ms) * fps / 1000
    frames = list(_images(np.asarray(poses)[shown.astype(np.int64)], size))
    with replacing(path) as part:
        frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=delay_ms, loop=0)
    return path


def write_mp4(path: str | Path, poses: np.ndarray, fps: float, size: int = 480) -> Path:
    """Front view (left) and side view (right) as an H.264 film at the clip's own rate; needs the extra `video`."""
    path = Path(path)
    video.write_mp4(path, (np.asarray(image) for image in _images(poses, size)), fps)
    return path


def _images(poses: np.ndarray, size: int) -> Iterator[Image.Image]:
    """One image per pose, all at the same scale."""
    poses = np.asarray(poses, np.float64)
    reach = max(float(np.abs(poses).max()), 1e-3) * 1.1
    return (_image(pose, size, reach) for pose in poses)


def _image(pose: np.ndarray, size: int, reach: float) -> Image.Image:
    image = Image.new("RGB", (2 * size, size), "white")
    pen = ImageDraw.Draw(image)
    for view, (across, down) in enumerate((([1, 0, 0], [0, 1, 0]), ([0, 0, 1], [0, 1, 0]))):
        x = size * (view + 0.5) + pose @ np.array(across) * size / 2 / reach
        y = size * 0.5 + pose @ np.array(down) * size / 2 / reach
        for a, b, side in BONES:
            pen.line([x[a], y[a], x[b], y[b]], fill=_COLOURS[side], width=max(2, size // 80))
    return image
