"""The secret's file, read again when that is asked for; and the end of its previous key."""

import logging
import time
from typing import Protocol

from common.cluster.secrets import SecretFile, Secrets
from common.engine.worker import Worker
from common.settings import ConfigError
from common.settings.host import check_secret

_LOOK_S = 60.0  # at unix time, which may be set
log = logging.getLogger(__name__)


class Config(Protocol):
    """What it needs of a configuration."""

    @property
    def file(self) -> str: ...
    @property
    def secret_file(self) -> str: ...


class Keyed(Protocol):
    """What has keys: a data path."""

    secrets: Secrets


class SecretReader(Worker[SecretFile | ConfigError]):
    """A source of the loop: disks may take their time, packets may not."""

    def __init__(self, config: Config, keyed: Keyed) -> None:
        """Reads it once more, so that `keyed` has its previous key no longer than it holds."""
        super().__init__("reading the secrets", self._take)
        self._file_name, self._path = config.file, config.secret_file
        self._keyed = keyed
        self._file: SecretFile | None = None
        self.read()

    def read(self, file: str | None = None, path: str | None = None) -> None:
        """Take what is in the file from now on. file: which names it. path: another one."""
        self._file_name, self._path = file or self._file_name, path or self._path
        self.start(self._read)

    def on_deadline(self) -> None:
        """As sources.Source."""
        self._apply()

    def _read(self) -> SecretFile | ConfigError:
        try:
            return check_secret(self._file_name, self._path)
        except ConfigError as error:
            return error

    def _take(self, found: SecretFile | ConfigError) -> None:
        if isinstance(found, ConfigError):
            log.error("the secrets in use are kept: %s", found)
            return
        before, self._file = self._file, found
        self._apply()
        if before is not None:
            log.info("the secrets in %s are now in use", self._path)
            if before.seed != found.seed:
                log.warning("the seed in %s is another one; a balancer takes it when it starts, "
                            "and then most keys move", self._path)

    def _apply(self) -> None:
        """Let those keys hold that do now, and look again in time."""
        file, now_s = self._file, time.time()
        if file is None:
            return
        keys = file.keys_at(now_s)
        if self._keyed.secrets != keys:
            self._keyed.secrets = keys
        self.deadline_s = None
        if file.until_s is None:
            return
        if keys.previous is None:
            log.info("the previous key in %s is not accepted any more", self._path)
            return
        self.deadline_s = time.monotonic() + min(file.until_s - now_s, _LOOK_S)
