"""What strangers fill: entries by five-tuple, bounded in weight, of which the oldest make room.

A source prefix that has more than its share makes room by its own, so a flood from one network puts
out nobody else's. However full it is, each step takes the same time: whoever fills it must not make
it slow as well. (The first key of a dict is no such step: it walks over all that have left.)

Prefixes are told apart by a keyed hash (Python's of octets), so that their number is bounded, too,
and nobody can choose whom to share with.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

SHARES = 8  # one prefix has at most one of so many parts, where others want room
_GROUPS = 4096
_PREFIX_LEN = 3  # octets of the source: /24

V = TypeVar("V")


class _Group:
    """The entries of prefixes that share a hash, the oldest first."""

    __slots__ = ("keys", "weight")

    def __init__(self) -> None:
        self.keys: OrderedDict[bytes, None] = OrderedDict()
        self.weight = 0


class Crowd(Generic[V]):
    """See the module. room: the weight of all that it should hold. weight: of what is there."""

    def __init__(self, room: int) -> None:
        self.weight = 0
        self.set_room(room)
        self._entries: OrderedDict[bytes, V] = OrderedDict()
        self._groups: dict[int, _Group] = {}
        self.get = self._entries.get
        self.items = self._entries.items

    def set_room(self, room: int) -> None:
        """Hold as much as this from now on."""
        self._room = room
        self._share = max(room // SHARES, 1)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def put(self, key: bytes, value: V, weight: int) -> None:
        """Add an entry, the latest; its key has none."""
        self._entries[key] = value
        number = _group_of(key)
        group = self._groups.get(number)
        if group is None:
            group = self._groups[number] = _Group()
        group.keys[key] = None
        group.weight += weight
        self.weight += weight

    def reweigh(self, key: bytes, grown: int) -> None:
        """An entry has another weight now."""
        self._groups[_group_of(key)].weight += grown
        self.weight += grown

    def remove(self, key: bytes, weight: int) -> None:
        """Take an entry out, which weighs so much."""
        del self._entries[key]
        number = _group_of(key)
        group = self._groups[number]
        del group.keys[key]
        group.weight -= weight
        self.weight -= weight
        if not group.keys:
            del self._groups[number]

    def crowded_by(self, key: bytes) -> bytes | None:
        """Whose entry is to make room, now that `key` has come or grown; None: there is enough.

        It may be the entry of `key` itself.
        """
        if self.weight <= self._room or not self._entries:
            return None
        group = self._groups.get(_group_of(key))
        if group is not None and group.weight > self._share:
            return next(iter(group.keys))
        return next(iter(self._entries))


def _group_of(key: bytes) -> int:
    return hash(key[:_PREFIX_LEN]) % _GROUPS
