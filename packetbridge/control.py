"""What can be seen of a bridge, as JSON says it (docs/api.md)."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from common.control.api import Views, in_loop
from common.control.forms import Asked, Refused
from common.control.inbox import Inbox
from common.control.query import FlowQuery, client_of
from packetbridge.datapath import Datapath
from packetbridge.offload.beside import Beside
from packetbridge.offload.fast import Choice


class Shown:
    """Describes a bridge. choices: how its services are served."""

    def __init__(
        self, inbox: Inbox, datapath: Datapath, beside: Beside,
        choices: Callable[[], Sequence[Choice]],
    ) -> None:
        self._inbox = inbox
        self._datapath = datapath
        self._beside = beside
        self._choices = choices

    async def facts(self) -> dict[str, Any]:
        """The bridge's part of `status`."""
        flows, evicted = await in_loop(self._inbox, self._beside.totals)
        return {"flows": flows, "max_flows": self._datapath.max_flows, "evicted_flows": evicted,
                "services": len(self._choices())}

    async def services(self, _: Asked) -> Mapping[str, Any]:
        """The services, and how each is served."""
        return {"services": [
            {"name": service.name, "vip": str(service.vip), "port": service.port,
             "dscp": service.dscp, "server": f"{service.server}:{service.server_port}",
             "wscale": service.wscale, "mode": choice.mode, "engine": choice.engine,
             "because": choice.reason}
            for choice in self._choices() for service in (choice.service,)]}

    async def flows(self, asked: Asked) -> Mapping[str, Any]:
        """The flows that it has; connections that were adopted are the host's own."""
        wants, name = FlowQuery(asked.query), asked.query.get("service")
        names = [choice.service.name for choice in self._choices()]
        if name not in (None, *names):
            raise Refused(404, f"there is no service {str(name)[:100]}; there are: "
                          + ", ".join(names))
        return await asyncio.to_thread(self._look, wants, name)

    def _look(self, wants: FlowQuery, name: str | None) -> Mapping[str, Any]:
        """In any thread."""
        meant = (each for each in self._beside.glance()
                 if name in (None, each.service.config.name) and wants.is_meant(each.key))
        found = list(islice(meant, wants.limit + 1))
        return {"more": len(found) > wants.limit, "flows": [
            {"client": client_of(each.key), "service": each.service.config.name,
             "state": each.state, "engine": each.engine} for each in found[:wants.limit]]}


def make_views(
    datapath: Datapath, beside: Beside, choices: Callable[[], Sequence[Choice]]
) -> Views:
    """What is answered by HTTP."""
    inbox = Inbox()
    shown = Shown(inbox, datapath, beside, choices)
    return Views(inbox, shown.facts, {"services": shown.services, "flows": shown.flows})
