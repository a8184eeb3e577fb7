"""Another configuration for a bridge that runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from common.engine.claims import Claim
from common.engine.host import Host
from common.engine.reload import Refused
from common.settings import COMMAND_LINE
from common.settings.emit import emit
from common.settings.host import check_secret
from packetbridge.config import Config
from packetbridge.plan import plan_of


class LiveBridge:
    """As reload.Live. running: the configuration that runs."""

    def __init__(self, running: Config, load: Callable[[], Config]) -> None:
        self.running = running
        self._load = load

    def read(self, whole: bool) -> "Change":
        loaded = self._load()
        loaded = replace(loaded, address=loaded.address or self.running.address)
        check_secret(loaded.file, loaded.secret_file)
        plan = plan_of(self.running, loaded)
        if plan.restarts:
            raise Refused(tuple(map(str, plan.restarts)))
        return Change(self, loaded, plan.lines)

    def watched(self) -> tuple[Sequence[str], Sequence[str]]:
        is_watched = self.running.watch and self.running.file != COMMAND_LINE
        return [self.running.file] if is_watched else [], []

    def emit(self) -> str:
        return emit(self.running)

    def tidy(self) -> None:
        return None


class Change:
    def __init__(self, live: LiveBridge, loaded: Config, lines: tuple[str, ...]) -> None:
        self.lines = lines
        self.file, self.secret_file = loaded.file, loaded.secret_file
        self.claims: Sequence[Claim] = ()
        self._live, self._loaded = live, loaded

    def begin(self) -> None: ...

    @property
    def is_ready(self) -> bool:
        return True

    def before(self, host: Host) -> None: ...

    def apply(self) -> None:
        self._live.running = self._loaded

    def after(self, host: Host) -> None: ...
