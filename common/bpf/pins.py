"""What outlives a daemon: maps and links of an instance, pinned under one directory.

    <bpffs>/l3dsr/<cookie of the network namespace>/<program>-<queue>/
        maps/<map>-<digest>    links/<hook>-<how>-<interface's index>

The first start creates and pins; a later one, after a kill or with a newer release, goes on:

    pins = Pins("balancer-0")
    with Object(path) as program_file:
        pins.reuse_maps(program_file, [Kept("flows"), Kept("counters")])
        program_file.load()
        pins.fill_maps(program_file)                          # what old maps hold, if any
        link = pins.attach_xdp(program_file.program("on_packet"), index)
        pins.settle()                                         # from now on the new maps are kept

The digest is of the types of its keys and values, as the object's BTF has them: a map whose shape
and digest agree is used on as it is. One that has another size, type or flags is replaced, and its
entries move: once before the programs change places, and once more after, for those that came in
between. Where the types differ, and be it that two fields of a size have changed places, nobody
knows any more what the octets mean, and the new map begins empty.
"""

import ctypes
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.bpf.libbpf import BpfError, possible_cpus
from common.bpf.links import Direction, Link, Mode, TcFilter, attach_tc, attach_xdp
from common.bpf.maps import (
    DEVMAP,
    DEVMAP_HASH,
    LRU_HASH,
    LRU_PERCPU_HASH,
    NOEXIST,
    Map,
    Shape,
)
from common.bpf.objects import Object, Program
from common.engine import netns

_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC
_OWN, _USUAL = Path("/run/l3dsr/bpf"), Path("/sys/fs/bpf")
_OF_FIRST = Path("/proc/1/root/sys/fs/bpf")
_NO_COMMON_LRU, _RDONLY_PROG = 1 << 1, 1 << 7
_DRAFT = "new-"
_LIBC = ctypes.CDLL(None, use_errno=True)
Entry = tuple[Any, Any]  # octets; the value a list of them in a per-CPU map


@dataclass(frozen=True)
class Kept:
    """A map to be kept.

    keyed_by: the enum that names an array's places.
    beside:   the structs that have places of their own in it; where they differ, values move.
    meaning:  whatever else its octets are true for.
    copy:     (old map, whether what it has goes first) → None, for a map whose entries are more
              than keys and values; in place of copying these, wherever the values agree.
    """

    name: str
    keyed_by: str = ""
    beside: tuple[str, ...] = ()
    meaning: str = ""
    copy: Callable[[Map, bool], None] | None = None

    def version(self, program_file: Object) -> "Version":
        """Its layout in an object."""
        key, value = program_file.btf.digest_of_map(self.name, self.keyed_by, self.beside)
        meaning = hashlib.sha256(self.meaning.encode()).hexdigest()[:8] if self.meaning else ""
        return Version(key, value + meaning)


class Version(NamedTuple):
    """Digests of what a map's keys and values mean."""

    key: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Version":
        """As it stands in the name of a pin."""
        return cls(text[:8], text[8:])

    def __str__(self) -> str:
        return self.key + self.value


class Pins:
    """The pins of one instance in the network namespace that this process is in."""

    def __init__(self, owner: str) -> None:
        """owner: `<program>-<queue>`, of which only one process runs. Raises: BpfError."""
        found = _found(owner)
        self.path = found[0] if found else bpffs() / _own_path(owner)
        self._kept: list[Kept] = []
        self._versions: dict[str, Version] = {}
        self._old: dict[str, tuple[Map, Version]] = {}  # maps to be replaced
        self._new: dict[str, Map] = {}

    # --- maps ---

    def reuse_maps(self, program_file: Object, kept: Sequence[Kept]) -> list[str]:
        """Before load: let an object use the maps that agree. Returns: the names of those.

        Raises: BpfError.
        """
        self._kept = list(kept)
        self._versions = {one.name: one.version(program_file) for one in kept}
        reused = []
        for one in kept:
            found = self._find_map(one)
            if found is None:
                continue
            old, version = found
            if version == self._versions[one.name] \
                    and old.shape == _as_created(program_file, one.name):
                program_file.reuse(one.name, old)
                reused.append(one.name)
                old.close()
            else:
                self._old[one.name] = found
        return reused

    def fill_maps(self, program_file: Object) -> None:
        """After load, before attach: pin maps that are new, fill those that replace others.

        Raises: BpfError.
        """
        (self.path / "maps").mkdir(mode=0o700, parents=True, exist_ok=True)
        for one in self._kept:
            made = program_file.map(one.name)
            if one.name in self._old:
                self._new[one.name] = made
                self._copy(one, *self._old[one.name], made, replace=True)
                continue
            if not self._map_path(one).exists():
                made.pin(self._map_path(one))
            made.close()

    def settle(self) -> None:
        """After attach: keep the new maps in place of the old ones, with their last entries.

        Raises: BpfError.
        """
        for one in self._kept:
            if one.name not in self._new:
                continue
            made, (old, version) = self._new.pop(one.name), self._old.pop(one.name)
            target = self._map_path(one)
            draft = target.with_name(f"{_DRAFT}{target.name}")
            draft.unlink(missing_ok=True)
            made.pin(draft)
            draft.rename(target)
            self._copy(one, old, version, made, replace=False)
            made.close()
            old.close()
        wanted = {self._map_path(one) for one in self._kept}
        for path in _listed(self.path / "maps"):
            if path not in wanted:  # of another version, or of a release that kept more
                path.unlink()

    def map_paths(self) -> dict[str, Path]:
        """The pinned maps, by name."""
        return {path.name.rpartition("-")[0]: path for path in _listed(self.path / "maps")}

    def _map_path(self, one: Kept) -> Path:
        return self.path / "maps" / f"{one.name.replace('.', '_')}-{self._versions[one.name]}"

    def _find_map(self, one: Kept) -> tuple[Map, Version] | None:
        """The pinned map of that name, and its version."""
        path = self._map_path(one)
        if not path.exists():  # of two versions, ours is the one that was in use last
            known = self.map_paths().get(one.name.replace(".", "_"))
            if known is None:
                return None
            path = known
        return Map.open_pinned(path), Version.parse(path.name.rpartition("-")[2])

    def _copy(self, one: Kept, old: Map, version: Version, new: Map, replace: bool) -> None:
        """Copy entries from an old map into a new one, as far as they mean the same."""
        wanted = self._versions[one.name]
        if one.copy is not None:
            if version.value == wanted.value:
                one.copy(old, replace)
        elif version == wanted and old.shape[1:3] == new.shape[1:3]:
            _insert(new, old.items(), replace)

    # --- links ---

    def attach_xdp(self, program: Program, index: int, mode: Mode | None = None) -> Mode:
        """Put a program on an interface, in place of an earlier one without a gap.

        mode: as links.attach_xdp; None takes an earlier one's. Returns: the mode.
        Raises: BpfError.
        """
        for path in self._links(f"xdp-*-{index}"):
            found = Mode(path.name.split("-")[1])
            if mode in (None, found) and _replace(path, index, program):
                return found
            _remove_link(path)
        link, made = attach_xdp(program, index, mode)
        self._pin_link(link, f"xdp-{made.value}-{index}")
        return made

    def attach_tc(self, program: Program, index: int, direction: Direction) -> str:
        """The same for a hook of tc. Returns: `tcx` or `clsact`. Raises: BpfError."""
        wanted = self.path / "links" / f"tcx-{direction.value}-{index}"
        if wanted.exists():
            if _replace(wanted, index, program):
                return "tcx"
            _remove_link(wanted)
        made = attach_tc(program, index, direction, _handle(self.path))
        if isinstance(made, Link):
            self._pin_link(made, wanted.name)
            return "tcx"
        # A filter is there without a descriptor; its program's pin is what tells `detach` of it.
        note = wanted.with_name(wanted.name.replace("tcx", "clsact"))
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        program.pin(note)
        return "clsact"

    def exchange_xdp(self, program: Program) -> None:
        """Put a program in place of the one that is attached; no packet meets none.

        Raises: BpfError.
        """
        for path in self._links("xdp-*"):
            link = Link.open_pinned(path)
            try:
                if link.interface():
                    link.replace(program)
            finally:
                link.close()

    def keep_links(self, names: Sequence[str]) -> None:
        """Detach all but these (`xdp-native-3`, `tcx-ingress-3` …): what is configured no more."""
        for path in _listed(self.path / "links"):
            if path.name not in names:
                _remove_link(path)

    def links(self) -> list[str]:
        """The names of what is attached."""
        return [path.name for path in _listed(self.path / "links")]

    def link_path(self, name: str) -> Path:
        """Where a link is pinned."""
        return self.path / "links" / name

    @property
    def handle(self) -> int:
        """The number of its clsact filters."""
        return _handle(self.path)

    def _links(self, pattern: str) -> list[Path]:
        return sorted((self.path / "links").glob(pattern))

    def _pin_link(self, link: Link, name: str) -> None:
        path = self.path / "links" / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        link.pin(path)
        link.close()


def detach(owner: str) -> bool:
    """Remove all of an instance in this network namespace. Returns: whether there was anything.

    owner: as for Pins. Raises: BpfError.
    """
    found = _found(owner)
    for path in found:
        remove(path)
    return bool(found)


def remove(path: Path) -> None:
    """Detach and unpin all of an instance's directory. Raises: BpfError."""
    for link in _listed(path / "links"):
        _remove_link(link)
    for pinned in _listed(path / "maps"):
        pinned.unlink()
    for directory in (path / "links", path / "maps", path, path.parent):
        try:
            directory.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:  # other instances of the namespace
            if error.errno != errno.ENOTEMPTY:
                raise


def sweep() -> list[str]:
    """Remove what instances of network namespaces that have gone left. Returns: their owners.

    The interfaces go with their namespace, and leave links that lead nowhere.
    """
    gone = []
    instances = [path for place in _places() for namespace in _listed(place / "l3dsr")
                 for path in _listed(namespace)]
    for path in instances:
        found = _listed(path / "links")
        try:
            if found and all(_leads_nowhere(link) for link in found):
                remove(path)
                gone.append(path.name)
        except OSError as error:  # others sweep, too
            if error.errno != errno.ENOENT:
                raise
    return gone


def bpffs() -> Path:
    """A bpf file system that lasts as long as the host; one of our own where there is none.

    Raises: BpfError where none can be had.
    """
    places = _places()
    return places[0] if places else mount_own()


def mount_own() -> Path:
    """A bpf file system at /run/l3dsr/bpf, which mount namespaces inherit that are made later.

    One that is mounted in a mount namespace of our own (`ip netns exec` makes one) goes with it.
    Raises: BpfError.
    """
    _OWN.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_bpffs(_OWN):
        return _OWN
    if _LIBC.mount(b"bpf", os.fsencode(_OWN), b"bpf", ctypes.c_ulong(0), b"mode=0700"):
        raise BpfError(ctypes.get_errno(), f"mounting a bpf file system at {_OWN}")
    return _OWN


def _places() -> list[Path]:
    """Where bpf file systems are that may be used, the best one first."""
    # `ip netns exec` shows a /sys of its own; the host's is the first process's.
    places = (_OWN, _USUAL, _OF_FIRST)
    return [place for place in places if _is_bpffs(place) and _is_writable(place)]


def _own_path(owner: str) -> Path:
    return Path("l3dsr") / str(netns.cookie()) / owner


def _found(owner: str) -> list[Path]:
    """Where an instance has pinned something."""
    own = _own_path(owner)
    return [place / own for place in _places() if (place / own).exists()]


def _is_bpffs(path: Path) -> bool:
    room = (ctypes.c_long * 32)()  # struct statfs, whose first field is the type
    return _LIBC.statfs(os.fsencode(path), room) == 0 and room[0] == _MAGIC


def _is_writable(place: Path) -> bool:
    """Whether our pins can be there: systemd's hardening may show all else read-only."""
    own = place / "l3dsr"
    return os.access(own if own.exists() else place, os.W_OK)


def _listed(directory: Path) -> list[Path]:
    """What is in a directory; nothing if it has just gone."""
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _as_created(program_file: Object, name: str) -> Shape:
    """A map's shape as the kernel will tell it; of some types it changes what was asked for."""
    shape = program_file.shape(name)
    if shape.type in (LRU_HASH, LRU_PERCPU_HASH) and shape.flags & _NO_COMMON_LRU:
        cpus = possible_cpus()
        return shape._replace(max_entries=-(-shape.max_entries // cpus) * cpus)
    if shape.type in (DEVMAP, DEVMAP_HASH):
        return shape._replace(flags=shape.flags | _RDONLY_PROG)
    return shape


def _insert(target: Map, entries: Iterable[Entry], replace: bool) -> None:
    """Write as many entries as there is room for. replace: those that are there, too."""
    try:
        if replace:
            target.update_all(entries)
            return
        for key, value in entries:
            try:
                target.update(key, value, NOEXIST)
            except BpfError as error:
                if error.errno != errno.EEXIST:
                    raise
    except BpfError as error:
        if error.errno not in (errno.E2BIG, errno.ENOSPC):
            raise


def _replace(path: Path, index: int, program: Program) -> bool:
    """Put a program in an earlier one's place. Returns: False if that cannot be."""
    try:
        link = Link.open_pinned(path)
        try:
            if link.interface() != index:
                return False
            link.replace(program)
        finally:
            link.close()
    except BpfError:
        return False
    return True


def _remove_link(path: Path) -> None:
    """Detach and unpin. Raises: BpfError."""
    kind, side, index = path.name.split("-")
    if kind == "clsact":
        TcFilter(int(index), Direction(side), _handle(path.parent.parent)).detach()
    else:
        Link.open_pinned(path).detach()
    path.unlink()


def _handle(instance: Path) -> int:
    """The number of an instance's clsact filters: its queue's, from 1."""
    return int(instance.name.rpartition("-")[2]) + 1


def _leads_nowhere(path: Path) -> bool:
    if path.name.startswith("clsact-"):
        return False
    link = Link.open_pinned(path)
    try:
        return link.interface() == 0
    finally:
        link.close()
