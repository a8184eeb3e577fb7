"""What may be asked about flows, of either program."""

from collections.abc import Mapping
from ipaddress import IPv4Network, ip_address

from common.control.forms import Refused
from common.wire import five_tuple

_MOST, _USUAL = 1000, 100


class FlowQuery:
    """Which flows are meant, by client; and how many are wanted. Raises: Refused."""

    def __init__(self, query: Mapping[str, str]) -> None:
        self.limit = _limit(query.get("limit", str(_USUAL)))
        self._network: tuple[int, int] | None = None
        client = query.get("client")
        if client is not None:
            try:
                network = IPv4Network(client, strict=False)
            except ValueError:
                raise Refused(400, "client: an IPv4 address or network, such as 198.51.100.0/24, "
                              f"not {client[:100]}") from None
            self._network = int(network.network_address), int(network.netmask)

    def is_meant(self, key: bytes) -> bool:
        """Whether a five-tuple's client is."""
        if self._network is None:
            return True
        address, mask = self._network
        return int.from_bytes(five_tuple.split(key).src) & mask == address


def client_of(key: bytes) -> str:
    """A five-tuple's client, as ADDRESS:PORT."""
    ends = five_tuple.split(key)
    return f"{ip_address(ends.src)}:{int.from_bytes(ends.sport)}"


def _limit(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and 1 <= int(text) <= _MOST):
        raise Refused(400, f"limit: a whole number from 1 to {_MOST}")
    return int(text)
