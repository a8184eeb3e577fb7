"""What tests of eBPF share: root, a compiler, and a wire with two ends."""

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from common.bpf import build, pins
from common.bpf.objects import Object
from lab.node import wait_until
from lab.topology import Lab
from tests.bpf.tiny import TINY, arrives
from tests.lab.netns import udp_socket

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here need root, and a compiler."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.root)
            if not shutil.which("clang"):
                item.add_marker(pytest.mark.skip(reason="this system has no clang"))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile a program's text, each but once. Returns: its object file."""
    directory = tmp_path_factory.mktemp("bpf")

    @cache
    def compile_text(text: str) -> Path:
        made = directory / str(sum(1 for _ in directory.iterdir()))
        made.mkdir()
        source = made / "tiny.bpf.c"
        source.write_text(text)
        return build.compile(source)

    return compile_text


@pytest.fixture(scope="session")
def own_bpffs() -> Iterator[None]:
    """A bpf file system that is there for what `ip netns exec` starts."""
    before = Path("/proc/mounts").read_text(encoding="utf-8")
    path = pins.mount_own()
    yield
    if f" {path} " not in before:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def wire(own_bpffs: None) -> Iterator[Lab]:
    """Two hosts, `client` and `balancer`, that see each other's packets."""
    with Lab(backends=0) as lab:
        yield lab


@pytest.fixture
def tiny(compiled: Callable[[str], Path]) -> Iterator[Object]:
    """The tiny object, opened."""
    with Object(compiled(TINY)) as made:
        yield made


@pytest.fixture
def server(wire: Lab) -> socket.socket:
    """A socket on the balancer that datagrams come to."""
    made = udp_socket(wire.node("balancer"), port=9)
    wait_until(lambda: arrives(wire, made, 0.3), 5, "a datagram arrives")
    return made
