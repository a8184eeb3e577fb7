"""The commands that show a balancer that runs, and change what it does with backends."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from balancer import config
from balancer.tools.words import found_by
from common.control.client import FAILED, Client, NoAnswer
from common.control.commands import Act, Commands, counted, lasting, show
from common.settings import cli

_POLL_S = 0.25
_SAY_S = 5.0
_BACKENDS = ("service", "id", "address", "state", "weight", "share", "flows", "handoffs", "bytes",
             "check")


def add(commands: Any, program: str) -> None:
    """Add them to a parser's commands."""
    ours = Commands(commands, program, config.Config, config.DEFAULT_FILE)
    ours.add_status()
    ours.add("services", "", "its services, and what they serve",
             "Show the services, with their flows and how many backends are in which state.",
             _services)
    parser = ours.add("backends", "", "its backends: state, share, flows",
                      "Show the backends, with their share of new flows and what checks say.",
                      _backends)
    _add_service(parser)
    parser = ours.add("health", "", "what the checks find",
                      "Show what the checks find, since when, how fast, and how many were passed.",
                      _health)
    _add_service(parser)
    ours.add_flows("Show flows: whose, where they go, how old they are.", _flows).add_argument(
        "--backend", metavar="BACKEND", default=None,
        help="of this backend alone: its id or address")
    _add_top(ours)
    _add_order(ours, "weight", "BACKEND WEIGHT", "give a backend another weight",
               "Give a backend another weight than the configuration says; `default` is the "
               "configuration's again.", _weigh).add_argument(
                   "weight", metavar="WEIGHT", help="0 to 65535, or default")
    parser = _add_order(
        ours, "drain", "BACKEND", "give a backend no new flows",
        "Give a backend no new flows; those that it has continue. With --wait, return when the "
        "last of them has gone.", _drain)
    parser.add_argument("--wait", action="store_true", default=False,
                        help="until it has no flows any more")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=None,
                        help="wait for so long at most; then exit code 1")
    for name, help_text, description in (
        ("undrain", "give a drained backend new flows again", "End what `drain` began."),
        ("disable", "give a backend no flows at all",
         "Give a backend no new flows, and reset the clients of those that it has at their next "
         "packet."),
        ("enable", "give a disabled backend flows again", "End what `disable` began."),
    ):
        _add_order(ours, name, "BACKEND", help_text, description, _ordering(name))


def _add_top(ours: Commands) -> None:
    parser = ours.add(
        "top", "", "what flows now, live",
        "Show services, backends and packets by reason, live. q quits; n, s, f, h, b, u and c "
        "sort by name, state, flows, new flows, bytes, unanswered and check; r turns the order "
        "round.", _top)
    parser.add_argument("--once", action="store_true", default=False, help="print it once")
    parser.add_argument("--interval", metavar="SECONDS", type=float, default=2.0,
                        help="time between two looks (default 2)")


def _add_service(parser: cli.Parser) -> None:
    parser.add_argument("--service", metavar="NAME", default=None, help="of this service alone")


def _add_order(
    ours: Commands, name: str, words: str, help_text: str, description: str, act: Act
) -> cli.Parser:
    parser = ours.add(name, words, help_text, description, act)
    parser.add_argument("backend", metavar="BACKEND",
                        help="its id or address, in all services that have it")
    _add_service(parser)
    parser.add_argument("--keep", action="store_true", default=False,
                        help="beyond a restart, until it is taken back")
    return parser


# --- what is shown ---


def _top(client: Client, namespace: argparse.Namespace) -> int:
    if not (namespace.once or sys.stdin.isatty()):
        raise NoAnswer(FAILED, "top needs a terminal; without one, `top --once`")
    from balancer.tools import top  # with rich, which only this needs

    return top.run(client, namespace)



def _services(client: Client, namespace: argparse.Namespace) -> int:
    found = client.get("services")
    return show(namespace, found, ("service", "vip", "key", "scheduler", "flows", "handoffs",
                                   "bytes", "backends"),
                [(each["name"], f"{each['vip']}:{each['port']}", each["key"], each["scheduler"],
                  each["flows"], each["handoffs"], each["bytes"], counted(each["backends"]))
                 for each in found["services"]])


def _backends(client: Client, namespace: argparse.Namespace) -> int:
    found = client.get("backends", service=namespace.service)
    return show(namespace, found, _BACKENDS, [_row(each) for each in found["backends"]])


def _row(backend: dict[str, Any]) -> Sequence[object]:
    weight = str(backend["weight"])
    if backend["weight"] != backend["configured_weight"]:
        weight += f" (not {backend['configured_weight']})"
    check = backend["check"]
    return (backend["service"], backend["id"], backend["address"], backend["state"], weight,
            f"{backend['share']:.1%}", backend["flows"], backend["handoffs"], backend["bytes"],
            found_by(check) if check else "none")


def _health(client: Client, namespace: argparse.Namespace) -> int:
    found = client.get("health", service=namespace.service)
    return show(
        namespace, found, ("service", "id", "address", "state", "up", "since", "last", "passed",
                           "failed", "it"),
        [(each["service"], each["id"], each["address"], each["state"],
          "yes" if each["up"] else "no",
          "start" if each["since_seconds"] is None else lasting(each["since_seconds"]),
          f"{each['seconds'] * 1000:.1f} ms", each["passed"], each["failed"],
          found_by(each))
         for each in found["backends"]])


def _flows(client: Client, namespace: argparse.Namespace) -> int:
    found = client.get("flows", service=namespace.service, client=namespace.client,
                       backend=namespace.backend, limit=namespace.limit)
    show(namespace, found, ("client", "service", "backend", "state", "age", "idle"),
         [(each["client"], each["service"], each["backend"], each["state"],
           lasting(each["age_seconds"]), lasting(each["idle_seconds"]))
          for each in found["flows"]])
    if found["more"] and not namespace.json:
        print(f"there are more; {found['total']:,} in the table", file=sys.stderr)
    return 0


# --- what is ordered ---


def _order(client: Client, namespace: argparse.Namespace, name: str, **more: object
           ) -> list[dict[str, Any]]:
    body = {"backend": namespace.backend, "service": namespace.service, "keep": namespace.keep}
    found = client.post(name, {key: value for key, value in {**body, **more}.items()
                               if value is not None})
    backends: list[dict[str, Any]] = found["backends"]
    return backends


def _said(namespace: argparse.Namespace, backends: list[dict[str, Any]]) -> int:
    return show(namespace, {"backends": backends}, _BACKENDS, [_row(each) for each in backends])


def _ordering(name: str) -> Act:
    return lambda client, namespace: _said(namespace, _order(client, namespace, name))


def _weigh(client: Client, namespace: argparse.Namespace) -> int:
    return _said(namespace, _order(client, namespace, "weight", weight=namespace.weight))


def _drain(client: Client, namespace: argparse.Namespace) -> int:
    backends = _order(client, namespace, "drain")
    if namespace.wait:
        backends = _wait(client, namespace)
    return _said(namespace, backends)


def _wait(client: Client, namespace: argparse.Namespace) -> list[dict[str, Any]]:
    """Until the backends have no flows. Raises: NoAnswer when the time is over."""
    began_s = said_s = time.monotonic()
    while True:
        backends: list[dict[str, Any]] = client.get(
            "backends", service=namespace.service, backend=namespace.backend)["backends"]
        left = sum(each["flows"] for each in backends)
        if not left:
            return backends
        now_s = time.monotonic()
        if namespace.timeout is not None and now_s - began_s >= namespace.timeout:
            raise NoAnswer(FAILED, f"{left} flows are left after {namespace.timeout:g} s; it stays "
                           "draining")
        if now_s - said_s >= _SAY_S:
            said_s = now_s
            print(f"{left} flows are left", file=sys.stderr)
        time.sleep(_POLL_S)
