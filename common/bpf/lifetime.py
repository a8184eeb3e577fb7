"""The kill switch of programs. Twin: common/bpf/include/lifetime.h"""

from common.bpf.objects import Object
from common.engine import clock

_NS_PER_MS = 1_000_000


def limit(program_file: Object, lifetime_ms: int | None) -> None:
    """Before load: let it leave packets to the host when so much time has passed."""
    if lifetime_ms is not None:
        program_file.set_variable("ends_ns", clock.now_ns() + lifetime_ms * _NS_PER_MS)
