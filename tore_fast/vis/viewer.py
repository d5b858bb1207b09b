"""Scenes in the browser, served by viser (extra `viewer`): bodies at their places, the photograph as a plane.

In: scenes of pipelines/scenes.py. Axes stay those of the camera (x right, y down, z away); the browser is told that
-y is up.
Called by cli/view.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from .scene import Actor, ResultScene

MODES = ("mesh and skeleton", "mesh", "skeleton")
_SIDES = {"L_": (31, 119, 180), "R_": (214, 39, 40)}
_IMAGE_STEP = 1280  # pixels: longer images are sent at every k-th pixel


class Viewer:
    """A server with controls for scene, frame, what is shown, camera and downloads.

    Args:
        scenes: at least one. host: address to listen on; the default is reached from this machine alone (over SSH:
        `ssh -L`).
        port: the next free one is taken where it is busy.

    Raises:
        ImportError: viser is missing.
    """

    def __init__(self, scenes: list[ResultScene], host: str = "127.0.0.1", port: int = 8080):
        try:
            import viser
        except ImportError as e:
            raise ImportError("view needs viser: pip install '.[viewer]' (or use --html FILE)") from e
        if not scenes:
            raise ValueError("Viewer: no scene")
        self.scenes, self.scene = scenes, scenes[0]
        self.server = viser.ViserServer(host=host, port=port, verbose=False)
        self.address = f"http://{host}:{self.server.get_port()}"
        self.server.scene.set_up_direction("-y")
        self._shown: list[Any] = []
        self._photo: Any = None
        self._controls()
        self.server.on_client_connect(lambda client: self._stand(client))
        self.open(self.scene)

    def _controls(self) -> None:
        gui = self.server.gui
        titles = [f"{i}: {s.title}" for i, s in enumerate(self.scenes)]
        self.which = gui.add_dropdown("result", titles, visible=len(titles) > 1)
        self.frame: Any = gui.add_slider("frame", 0, 1, 1, 0)
        self.play = gui.add_checkbox("play", False)
        self.mode = gui.add_dropdown("show", MODES)
        self.names = gui.add_checkbox("joint names", False)
        self.photo = gui.add_checkbox("photograph", True)
        camera = gui.add_button("camera's view")
        self.files = gui.add_dropdown("file", ("-",))
        save = gui.add_button("download")
        self.people = gui.add_markdown("")
        self.which.on_update(lambda _: self.open(self.scenes[titles.index(self.which.value)]))
        for control in (self.frame, self.mode, self.names, self.photo):
            control.on_update(lambda _: self.draw())
        camera.on_click(lambda event: self._stand(event.client))
        save.on_click(lambda event: self._send(event.client))

    def open(self, scene: ResultScene) -> None:
        """Shows another scene from its first frame on."""
        self.scene = scene
        last = scene.first + scene.frames - 1
        self.frame.min, self.frame.max = scene.first, max(last, scene.first + 1)
        self.frame.value = scene.first
        self.frame.visible = self.play.visible = scene.frames > 1
        self.files.options = tuple(p.name for p in scene.files) or ("-",)
        legend = "".join(f"\n* {p.name}: rgb{p.colour}{' (not believed)' if p.faint else ''}" for p in scene.people)
        self.people.content = f"**{scene.title}**, {len(scene.people)} people; left side blue, right side red{legend}"
        self.draw()
        for client in self.server.get_clients().values():
            self._stand(client)

    def draw(self) -> None:
        """Puts the chosen frame into the browser."""
        frame = int(self.frame.value)
        with self.server.atomic():
            for handle in self._shown:
                handle.remove()
            self._shown = []
            for number, person in enumerate(self.scene.people):
                row = person.row(frame)
                if row is not None:
                    self._shown += self._person(f"/people/{number}", person, row)
            self._plane(frame)

    def _person(self, name: str, person: Actor, row: int) -> list[Any]:
        made: list[Any] = []  # handles of several kinds
        add, mode = self.server.scene, self.mode.value
        if person.vertices is not None and person.faces is not None and mode != "skeleton":
            opacity = 0.35 if person.faint else 0.7 if mode == MODES[0] and person.bones else None
            made.append(
                add.add_mesh_simple(
                    f"{name}/mesh",
                    person.vertices[row],
                    person.faces,
                    color=person.colour,
                    opacity=opacity,
                    side="double",
                )
            )
        joints = person.joints[row]
        if person.bones and mode != "mesh":
            rows = np.array(person.bones)
            sides = [_SIDES.get(person.joint_names[b][:2], (60, 60, 60)) for _, b in person.bones]
            colours = np.repeat(np.array(sides, np.uint8)[:, None], 2, 1)
            made.append(add.add_line_segments(f"{name}/bones", joints[rows], colours, thickness=0.012))
            made.append(
                add.add_point_cloud(f"{name}/joints", joints, (30, 30, 30), point_size=0.02, point_shape="circle")
            )
        if self.names.value:
            made += [
                add.add_label(f"{name}/names/{n}", n, position=tuple(p)) for n, p in zip(person.joint_names, joints)
            ]
        return made

    def _plane(self, frame: int) -> None:
        pixels = self.scene.image(frame) if self.photo.value else None
        camera = self.scene.camera
        if self._photo is not None:
            self._photo.remove()
            self._photo = None
        if pixels is None or camera is None:
            return
        step = -(-max(pixels.shape[:2]) // _IMAGE_STEP)
        corners = camera.corners(self.scene.depth)
        width, height = corners[2, :2] - corners[0, :2]
        self._photo = self.server.scene.add_image(
            "/photograph", pixels[::step, ::step], width, height, format="jpeg", position=tuple(corners.mean(0))
        )

    def _stand(self, client: Any) -> None:
        """The photograph's camera: at the origin, looking along z."""
        view = self.scene.view()
        middle = float(self.scene.middle[2])
        client.camera.up_direction = (0.0, -1.0, 0.0)
        client.camera.position = (0.0, 0.0, 0.0)
        client.camera.look_at = (0.0, 0.0, middle)
        client.camera.fov = 2 * float(np.arctan(view.size[1] / 2 / view.focal))

    def _send(self, client: Any) -> None:
        for path in self.scene.files:
            if path.name == self.files.value and Path(path).is_file():
                client.send_file_download(path.name, Path(path).read_bytes())

    def run(self, seconds: float | None = None) -> None:
        """Serves until Ctrl-C, or for some seconds; plays where `play` is ticked."""
        end = None if seconds is None else time.monotonic() + seconds
        try:
            while end is None or time.monotonic() < end:
                time.sleep(1 / min(self.scene.fps, 25) if self.play.value else 0.1)
                if self.play.value and self.scene.frames > 1:
                    step = max(1, round(self.scene.fps / 25))
                    self.frame.value = (
                        self.scene.first + (int(self.frame.value) - self.scene.first + step) % self.scene.frames
                    )
        finally:
            self.server.stop()
