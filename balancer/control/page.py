"""The page at the metrics' address: one file, which draws what its events bring.

Each event is an answer of its own: its end makes the browser ask again. So a viewer holds no
connection, and any number of them have what was looked up once.
"""

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from importlib import resources
from typing import Any

from balancer.control.history import History
from common.control import PREFIX
from common.control.api import Asked, Content, Handler

EVERY_MS = 2000
_KEPT_S = 1.0  # how long what was looked up is still told to others


def page() -> Content:
    """The page, with what its own rules say of its script."""
    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    script = text.split("<script>", 1)[1].split("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Content(text.replace("{{script}}", f"sha256-{digest}").encode(),
                   "text/html; charset=utf-8")


def pages(gets: Mapping[str, Handler], history: History) -> Mapping[str, Handler]:
    """What is got by which path. gets: by name."""
    whole = page()

    async def show(_: Asked) -> Content:
        return whole

    async def tell(_: Asked) -> Mapping[str, Any]:
        return history.as_json()

    return {"/": show, PREFIX + "events": Events(gets, history).answer, PREFIX + "history": tell}


class Events:
    """What the page draws. gets: by name, whose answers an event has."""

    def __init__(self, gets: Mapping[str, Handler], history: History) -> None:
        self._gets = gets
        self._history = history
        self._made_s = 0.0
        self._octets = b""

    async def answer(self, _: Asked) -> Content:
        """One event, and when to ask for the next one."""
        now_s = time.monotonic()
        if not self._octets or now_s - self._made_s >= _KEPT_S:
            self._octets = json.dumps(await self._look(), separators=(",", ":")).encode()
            self._made_s = now_s
        return Content(b"retry: %d\ndata: %b\n\n" % (EVERY_MS, self._octets), "text/event-stream")

    async def _look(self) -> Mapping[str, Any]:
        nothing = Asked()
        backends = await self._gets["backends"](nothing)
        return {
            "seconds": backends["seconds"], "backends": backends["backends"],
            "services": (await self._gets["services"](nothing))["services"],
            "status": await self._gets["status"](nothing),
            "reasons": await self._gets["reasons"](nothing),
            "history": self._history.as_json(),
        }
