"""The configuration reference says what the programs do."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from balancer import config as balancer_config
from packetbridge import config as bridge_config

TEXT = (Path(__file__).resolve().parents[2] / "docs/operations.md").read_text()
_AFTER_BALANCER = TEXT.partition("### balancer\n")[2]
BALANCER, _, _AFTER_BRIDGE = _AFTER_BALANCER.partition("### packetbridge\n")
BRIDGE = _AFTER_BRIDGE.partition("## The secret")[0]
SHARED = BALANCER.partition("`[timeouts]`")[0]
TABLES = {"services": "service", "backends": "backend"}
# `file` is where it all came from; the bridge's `vip` and `server` are ADDRESS:PORT.
NO_KEYS = {"balancer.config": {"file"}, "packetbridge.config": {"file", "port", "server_port"}}


def rows(text: str) -> dict[str, list[str]]:
    """Keys of the tables in `text`, each with the other cells of all its rows."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = re.match(r"\| `(\w+)`(?: §)? \|(.*)\|$", line)
        if match:
            found.setdefault(match[1], []).append(match[2])
    return found


BALANCER_CLASSES = [balancer_config.Config, balancer_config.Timeouts, balancer_config.Service,
                    balancer_config.Hold, balancer_config.Backend]
BRIDGE_CLASSES = [bridge_config.Config, bridge_config.Timeouts, bridge_config.Service]


@pytest.mark.parametrize("shape, text", [
    *((shape, BALANCER) for shape in BALANCER_CLASSES),
    *((shape, BRIDGE + SHARED) for shape in BRIDGE_CLASSES),
], ids=lambda value: getattr(value, "__qualname__", ""))
def test_every_key_has_a_row_with_its_default(shape: Any, text: str) -> None:
    documented = rows(text)

    for field in dataclasses.fields(shape):
        key = TABLES.get(field.name, field.name).removesuffix("_ms")
        if key in ("service", "timeouts"):
            assert f"[[{key}]]" in text or f"[{key}]" in text
            continue
        if field.name in NO_KEYS[shape.__module__]:
            continue
        assert key in documented, f"{shape.__qualname__}.{field.name}"
        default = field.default
        if isinstance(default, int) and not isinstance(default, bool):
            shown = f"`{default / 1000:g}`" if field.name.endswith("_ms") else f"`{default}`"
            assert any(shown in row for row in documented[key]), key
        elif isinstance(default, str):
            assert any(f'`"{default}"`' in row for row in documented[key]), key


def blocks() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("index, load", [(0, balancer_config.load), (1, bridge_config.load)])
def test_the_examples_are_right(index: int, load: Any, tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(blocks()[index])

    loaded = load(str(path))

    assert [service.name for service in loaded.services] == ["web", "tls"]
