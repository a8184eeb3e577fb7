"""A real browser without a screen, driven by the DevTools protocol over two pipes."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE_S = 30
_NAMES = ("chromium-headless-shell", "chromium")


def program() -> str | None:
    """Debian's Chromium, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page. Raises: RuntimeError where the browser ends, or a script of ours fails."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        """prefix: of its command, such as `ip netns exec NAME`."""
        chosen = program()
        if chosen is None:
            raise RuntimeError("there is no Chromium: apt-get install chromium-headless-shell")
        self._directory = tempfile.TemporaryDirectory(
            prefix="l3dsr-browser-", ignore_cleanup_errors=True)  # it may still write
        from_us, ours = os.pipe(), os.pipe()

        def place() -> None:  # where it looks for them, whatever numbers they have now
            ends = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (from_us[0], ours[1])]
            for number, end in enumerate(ends, start=3):
                os.dup2(end, number)

        self._popen = subprocess.Popen(
            [*prefix, chosen, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--remote-debugging-pipe", f"--user-data-dir={self._directory.name}",
             "about:blank"],
            preexec_fn=place, close_fds=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(from_us[0])
        os.close(ours[1])
        self._reading = os.fdopen(ours[0], "rb", buffering=0)
        self._writing = os.fdopen(from_us[1], "wb", buffering=0)
        self._octets = b""
        self._number, self._session = 0, ""
        self.complaints: list[str] = []  # of the console
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._reading.close()
        self._writing.close()
        self._directory.cleanup()

    def go(self, url: str) -> None:
        """Load a page."""
        error = self._call("Page.navigate", url=url).get("errorText")
        if error:
            raise RuntimeError(f"{url}: {error}")
        self.wait("document.readyState === 'complete'")

    def ask(self, script: str) -> Any:
        """What a script's expression is."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, script: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until an expression is true. Raises: TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not self.ask(script):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s:g} s: {script}")
            time.sleep(0.1)

    def press(self, key: str) -> None:
        """Press a key, such as `Tab` or `Enter`."""
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Tab": 9, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                       windowsVirtualKeyCode=code, **(text if kind == "keyDown" else {}))

    def look(self, *, scheme: str = "light", width: int = 1200, height: int = 1000) -> None:
        """How the page is looked at. scheme: `light` or `dark`."""
        self._call("Emulation.setEmulatedMedia",
                   features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                   deviceScaleFactor=1, mobile=width < 600)

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG."""
        data = self._call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def names(self) -> list[str]:
        """What a screen reader says: role and name of all that has one."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [f"{node['role']['value']} {node['name']['value']}" for node in nodes
                if not node.get("ignored") and node.get("name", {}).get("value")]

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._writing.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(answer["params"]))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._octets:
            more = self._reading.read(1 << 16)
            if not more:
                raise RuntimeError(f"the browser ended, with {self._popen.wait(10)}")
            self._octets += more
        one, self._octets = self._octets.split(b"\0", 1)
        found: dict[str, Any] = json.loads(one)
        return found
