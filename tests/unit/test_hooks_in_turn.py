"""A look at programs waits for a change of them, so that it is not taken for a fault."""

import threading
from pathlib import Path
from typing import Any

import pytest

from common.bpf import hooks
from common.bpf.hooks import Hooks

INDEX = 3


class Pins:
    """One program at one interface. number: the program's."""

    number = 7

    def links(self) -> list[str]:
        return [f"xdp-native-{INDEX}"]

    def link_path(self, name: str) -> Path:
        return Path(name)


def test_a_program_that_another_stands_in_for_is_not_missed(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    pins: Any = Pins()
    monkeypatch.setattr(hooks.Link, "open_pinned", lambda path: None)
    monkeypatch.setattr(hooks, "_program_at", lambda link, index: pins.number)
    made = Hooks(pins, lambda index: None)
    made.attach(INDEX)
    looks: list[bool] = []
    guard = threading.Thread(target=lambda: looks.append(made.are_lost(INDEX)))

    def stand_in(_: object) -> None:
        pins.number = 8
        guard.start()
        guard.join(0.3)  # so long a look may take, where it does not have to wait

    made.exchange(stand_in)
    guard.join()

    assert looks == [False]
