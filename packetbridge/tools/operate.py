"""The commands that show a bridge that runs."""

import argparse
import sys
from typing import Any

from common.control.client import Client
from common.control.commands import Commands, show
from packetbridge import config


def add(commands: Any, program: str) -> None:
    """Add them to a parser's commands."""
    ours = Commands(commands, program, config.Config, config.DEFAULT_FILE)
    ours.add_status()
    ours.add("services", "", "its services, and how each is served",
             "Show the services, their servers, and in which mode and by which engine they are "
             "served.", _services)
    ours.add_flows("Show flows that the bridge has. Connections that were adopted are the host's "
                   "own: `ss -tn` shows them.", _flows)


def _services(client: Client, namespace: argparse.Namespace) -> int:
    found = client.get("services")
    return show(namespace, found,
                ("service", "vip", "dscp", "server", "wscale", "mode", "engine", "because"),
                [(each["name"], f"{each['vip']}:{each['port']}", each["dscp"], each["server"],
                  each["wscale"], each["mode"], each["engine"], each["because"])
                 for each in found["services"]])


def _flows(client: Client, namespace: argparse.Namespace) -> int:
    found = client.get("flows", service=namespace.service, client=namespace.client,
                       limit=namespace.limit)
    show(namespace, found, ("client", "service", "state", "engine"),
         [(each["client"], each["service"], each["state"], each["engine"])
          for each in found["flows"]])
    if found["more"] and not namespace.json:
        print("there are more", file=sys.stderr)
    return 0
