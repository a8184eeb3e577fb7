"""Why a request goes where it goes: its key, the hash, the slot, the backend.

A URL is turned into the octets that a client would send first: a GET, or for
https a ClientHello made by OpenSSL. They then take the way that a real first
payload takes.
"""

import ssl
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, ip_address
from random import Random
from typing import Any
from urllib.parse import SplitResult, urlsplit

from balancer.config import Config, Service
from balancer.keys.request import NEED_MORE, NO_KEY, KeySpec, choose_key, extract
from common.settings import COMMAND_LINE, ConfigError
from common.wire.tcp import PORT_LEN

_SOURCE_KINDS = ("source", "source+port")


@dataclass(frozen=True, slots=True)
class Answer:
    """All that there is to say; None where the scheduler does not go by the key.

    key_spec:  what the key was taken by: the service's `key`, or its `fallback`.
    complete:  whether the octets hold the whole key; else the balancer would wait for more.
    bound:     percent of its fair share of flows above which a backend is passed over.
    runner_up: the choice if the backend left.
    """

    service: str
    key_spec: str
    key: str
    complete: bool
    scheduler: str
    bound: int | None
    hash: int | None
    slot: int | None
    backend: int | None
    backend_address: str | None
    runner_up: int | None
    runner_up_address: str | None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def lines(answer: Answer) -> list[tuple[str, str]]:
    """The answer for people: names and values."""
    from balancer.pool.schedule import TABLE_SIZE  # needs what --help must not need

    shown = [("service", answer.service), ("key", f"{answer.key_spec} = {answer.key}")]
    if not answer.complete:
        shown.append(("", "these octets do not end the key: the balancer would wait for more"))
    if answer.hash is None:
        return [*shown, ("backend", f"{answer.scheduler} chooses without the key")]
    shown.append(("hash", f"{answer.hash:#010x}"))
    if answer.slot is not None:
        shown.append(("slot", f"{answer.slot} of {TABLE_SIZE}"))
    if answer.backend is None:
        return [*shown, ("backend", "none: every backend has weight 0")]
    shown.append(("backend", f"{answer.backend} ({answer.backend_address})"))
    if answer.bound:
        shown.append(("", f"unless it has {answer.bound} % of its fair share of the flows"))
    if answer.runner_up is None:
        return [*shown, ("runner-up", "none: no other backend has weight")]
    return [*shown, ("runner-up", f"{answer.runner_up} ({answer.runner_up_address}), "
                                  f"if backend {answer.backend} left")]


def explain(
    service: Service, payload: bytes, source: tuple[IPv4Address, int] | None = None,
    hash_seed: bytes = b"",
) -> Answer:
    """Where a flow with this first payload goes.

    source: the client's address and port, for keys (and fallbacks) that are made of them.
    hash_seed: the cluster's, if it has one.
    Raises: ConfigError where the key is the client's address and `source` is None.
    """
    from balancer.pool.schedule import make_scheduler

    spec, complete = _deciding_spec(service, payload)
    if spec.kind in _SOURCE_KINDS and source is None:
        raise ConfigError(
            COMMAND_LINE, "--source", None,
            f"ADDRESS[:PORT] of a client: the key of this request is {spec}",
        )
    address, port = source or (IPv4Address(0), 0)
    key = choose_key(service.key, service.fallback, payload, address.packed, port, True)
    assert isinstance(key, bytes)  # for complete octets there is always a key
    scheduler = make_scheduler(
        service.scheduler, service.backends, random=Random(0),
        hash_balance_factor=service.hash_balance_factor, hash_seed=hash_seed,
    )
    found = scheduler.explain(key)
    addresses = {backend.id: str(backend.address) for backend in service.backends}
    return Answer(
        service=service.name, key_spec=str(spec), key=readable(spec, key), complete=complete,
        scheduler=service.scheduler, bound=service.hash_balance_factor,
        hash=found.key_hash, slot=found.slot,
        backend=found.backend_id, backend_address=addresses.get(found.backend_id or 0),
        runner_up=found.runner_up_id, runner_up_address=addresses.get(found.runner_up_id or 0),
    )


def _deciding_spec(service: Service, payload: bytes) -> tuple[KeySpec, bool]:
    """The spec that gives the key, and whether all of the key is there (see `choose_key`)."""
    waiting = False
    for spec in (service.key, service.fallback):
        key = extract(spec, payload, b"", 0, False)
        waiting = waiting or key is NEED_MORE
        if key is NEED_MORE:
            key = extract(spec, payload, b"", 0, True)
        if key is not NEED_MORE and key is not NO_KEY:
            return spec, not waiting
    return KeySpec("source"), not waiting


def readable(spec: KeySpec, key: bytes) -> str:
    """A key for people; whatever its octets are, on one line.

    spec: which gave it.
    """
    if spec.kind == "source":
        return str(ip_address(key))
    if spec.kind == "source+port":
        return f"{ip_address(key[:-PORT_LEN])}:{int.from_bytes(key[-PORT_LEN:], 'big')}"
    text = key.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def choose_service(config: Config, name: str | None, url: str | None) -> Service:
    """The service of that name, else the only one, else the one that the URL is for.

    That has the URL's VIP and port or, where the URL has a name, is the only one with its port.
    Raises: ConfigError, naming the services that may be meant.
    """
    names = ", ".join(service.name for service in config.services)
    if name is not None:
        for service in config.services:
            if service.name == name:
                return service
        raise ConfigError(COMMAND_LINE, "--service", name, f"a service of {config.file}: {names}")
    if len(config.services) == 1:
        return config.services[0]
    if url is not None:
        parts = _split(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if parts.hostname:
            at_port = [service for service in config.services if service.port == port]
            found = [service for service in at_port if str(service.vip) == parts.hostname]
            if len(found or at_port) == 1:
                return (found or at_port)[0]
            names = ", ".join(service.name for service in at_port) or names
    raise ConfigError(COMMAND_LINE, "--service", None, f"one of {names}")


def first_payload(url: str, headers: Sequence[str] = ()) -> bytes:
    """What a client sends first for `url`; `headers` are further `Name: value` lines.

    url: with http:// or https://, or a path alone. Raises: ConfigError.
    """
    parts = _split(url)
    if parts.scheme == "https":
        return client_hello(parts.hostname or "")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {target} HTTP/1.1"]
    if parts.netloc:
        lines.append(f"Host: {parts.netloc.rpartition('@')[2]}")
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def client_hello(host: str) -> bytes:
    """A ClientHello for `host`, as OpenSSL makes it on this machine."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname=host).do_handshake()
    except ssl.SSLWantReadError:
        pass  # the ClientHello is written; nobody will answer it
    except ValueError as error:
        raise ConfigError(COMMAND_LINE, "URL", host, f"a host name ({error})") from None
    return outgoing.read()


def _split(url: str) -> SplitResult:
    wrong = ConfigError(
        COMMAND_LINE, "URL", url, "http://HOST/PATH, https://HOST/PATH or /PATH, without blanks"
    )
    if any(character <= " " or character == "\x7f" for character in url):
        raise wrong
    try:
        parts = urlsplit(url if "://" in url or url.startswith("/") else f"http://{url}")
        usable = parts.port != 0  # reading it checks it
    except ValueError:
        raise wrong from None
    is_path = not parts.scheme and not parts.netloc
    if not usable or not (is_path or (parts.scheme in ("http", "https") and parts.hostname)):
        raise wrong
    return parts
