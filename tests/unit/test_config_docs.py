"""The configuration reference says what the programs do: it is made of the same declarations."""

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from balancer import config as balancer_config
from common.settings import shared
from common.settings.schema import Entry, Within, entries
from lab import reference
from packetbridge import config as bridge_config

TEXT = reference.PAGE.read_text()
SHAPES = [
    (program, shape)
    for program, module, names in (
        ("both", shared, ["Shared"]),
        ("balancer", balancer_config,
         ["Config", "Timeouts", "Service", "Hold", "Check", "Backend"]),
        ("packetbridge", bridge_config, ["Config", "Timeouts", "Service"]),
    )
    for shape in (getattr(module, name) for name in names)
]
# What is no setting: where all came from, and what a pair in one key fills.
NO_SETTINGS = {"file", "hash_seed", "kind", "port", "server_port"}


def test_the_tables_are_as_the_settings_are_declared() -> None:
    assert reference.written(TEXT) == TEXT, "python -m lab.reference writes them anew"


def test_every_program_has_its_table_of_metrics() -> None:
    for program in reference.METRICS:
        assert reference.metrics_table(program) in TEXT


def test_every_declaration_has_its_table() -> None:
    assert reference.named_in(TEXT) == {(program, shape.__name__) for program, shape in SHAPES}


@pytest.mark.parametrize("program, shape", SHAPES,
                         ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_every_field_is_declared_as_a_setting(program: str, shape: Any) -> None:
    declared: dict[str, Entry | Within] = {entry.name: entry for entry in entries(shape)}

    for field in dataclasses.fields(shape):
        if field.name not in declared:
            assert field.name in NO_SETTINGS, f"{program} {shape.__name__}.{field.name}"


def test_every_default_is_a_value_that_its_setting_can_have() -> None:
    checked = 0
    for _, shape in SHAPES:
        for entry in entries(shape):
            if isinstance(entry, Entry) and entry.shown_default:
                value = tomllib.loads(f"x = {entry.shown_default}")["x"]
                assert entry.setting.read(value) == entry.default, entry.name
                checked += 1
    assert checked > 30


def blocks() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("index, load", [(0, balancer_config.load), (1, bridge_config.load)])
def test_the_examples_are_right(index: int, load: Any, tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(blocks()[index])

    loaded = load(str(path))

    assert [service.name for service in loaded.services] == ["web", "tls"]
