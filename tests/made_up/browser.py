"""Headless Chromium over its debugging pipe: opens a page, runs JavaScript in it, takes a screenshot, notes what went
wrong."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of 900 x 700 pixels; use as a context manager."""

    def __init__(self, seconds: float = 90):
        self.seconds, self.errors, self.requests = seconds, [], []
        self._count, self._text = 0, b""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu-sandbox --enable-unsafe-swiftshader --use-angle=swiftshader"
        flags += " --remote-debugging-pipe --hide-scrollbars --window-size=900,700 --no-first-run --disable-extensions"
        command = [CHROMIUM, *flags.split(), f"--user-data-dir={self._folder.name}", "about:blank"]
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._run = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self._run.terminate()
        self._run.wait(20)
        os.close(self._out)
        os.close(self._in)
        self._folder.cleanup()

    def call(self, method: str, **params) -> dict:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self) -> dict:
        end = time.monotonic() + self.seconds
        while b"\0" not in self._text:
            ready = select.select([self._in], [], [], max(0, end - time.monotonic()))[0]
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, f"chromium gave no answer within {self.seconds} s"
            self._text += data
        one, _, self._text = self._text.partition(b"\0")
        event = json.loads(one)
        what, told = event.get("method"), event.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"])
        if what == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"])
        if what == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        return event

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def js(self, text: str):
        """Value of an expression."""
        found = self.call("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, text: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + self.seconds
        while not self.js(text):
            assert time.monotonic() < end, f"not true within {self.seconds} s: {text}"
            time.sleep(0.1)

    def screenshot(self, path: str | Path | None = None) -> bytes:
        """PNG of the page."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            Path(path).write_bytes(data)
        return data
