"""What pages show live: everything anew each second, made once for all who listen."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping

from common.control.forms import Asked, Handler, Refused, Stream

EVERY_S = 1.0
# Not in C: that would keep packets waiting until it is through.
_encode = json.JSONEncoder().iterencode


class Events:
    """Makes events of what some handlers answer. live: by name."""

    def __init__(self, live: Mapping[str, Handler]) -> None:
        self._live = live
        self._lock = asyncio.Lock()
        self._made_s = float("-inf")
        self._event = b""

    async def stream(self, _: Asked) -> Stream:
        """A handler."""
        return Stream(self._chunks())

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            yield await self._latest()
            await asyncio.sleep(EVERY_S)

    async def _latest(self) -> bytes:
        """The event of this second."""
        async with self._lock:
            if time.monotonic() - self._made_s >= EVERY_S / 2:
                self._event = await self._make()
                self._made_s = time.monotonic()
            return self._event

    async def _make(self) -> bytes:
        try:
            look = {name: await handler(Asked()) for name, handler in self._live.items()}
        except Refused as refused:
            return _event("refused", {"error": str(refused)})
        return _event("look", look)


def _event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {''.join(_encode(data))}\n\n".encode()
