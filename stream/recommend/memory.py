"""What is learned across users: how popular each item is, and what was clicked after which query and which item.

All of it is sums of clicks that fade with event time. A sum does not care in which order its parts arrive, so workers
exchange what they added (`take_delta`, `merge`) and all come to know the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from stream.recommend.ngrams import normalise
from stream.recommend.queries import KnownQueries
from stream.settings import Recommend

DAY = 86_400_000
PERIOD = 32  # half-lives after which the unit of the sums is renewed, by a power of two, which is exact
FORMAT = 1
UNLEARNED = 2  # the format of what is to be taken off again
TRACE = 1e-9  # of a click: what is left of its sum after it was taken off and is less than this is rounding
POPULAR, QUERY, FOLLOWED = "p", "q", "f"  # the first character of a key: of an item, of a query, of an item


class Sums(msgspec.Struct, array_like=True):
    """The decayed clicks on some items: S(T) = Σ 2^(−(T − tᵢ)/h) over the clicks at tᵢ.

    They are kept in the unit of a period of 32 half-lives: `masses` are S as of the period's beginning, so that a click
    adds 2^((t − beginning)/h) and nothing else need be touched (forward decay, Cormode et al. 2009).
    """

    period: int
    masses: dict[str, float]

    def add(self, period: int, masses: Mapping[str, float]) -> None:
        """Add other sums of the same half-life."""
        if period > self.period:
            down = PERIOD * (self.period - period)
            self.masses = {item: math.ldexp(mass, down) for item, mass in self.masses.items()}
            self.period = period
        down = PERIOD * (period - self.period)
        for item, mass in masses.items():
            self.masses[item] = self.masses.get(item, 0.0) + math.ldexp(mass, down)


class Delta(msgspec.Struct, array_like=True):
    """What some events added, by key: the value of a record of the `memory` topic, in msgpack."""

    version: int
    half_lives: dict[str, float]
    sums: dict[str, Sums]


class Stored(msgspec.Struct, array_like=True):
    """The whole of one key, as it lies in a key-value store, in msgpack."""

    version: int
    half_life: float
    sums: Sums


class Memory:
    """Decayed clicks by item, by query and by the item clicked before. One for all partitions of a worker.

    Attributes:
        popularity_changed: items whose popularity changed since a reader last emptied it.
    """

    def __init__(self, settings: Recommend) -> None:
        self._settings = settings
        self._half_lives = {
            POPULAR: settings.popularity_half_life_days * DAY,
            QUERY: settings.query_half_life_days * DAY,
            FOLLOWED: settings.followed_half_life_days * DAY,
        }
        self._sums: dict[str, dict[str, Sums]] = {POPULAR: {}, QUERY: {}, FOLLOWED: {}}
        self._delta: dict[str, Sums] = {}
        self._unlearned: dict[str, Sums] = {}
        self._changed: set[str] = set()
        self.queries = KnownQueries(settings.neighbours, settings.neighbour_sharpness)
        self.popularity_changed: set[str] = set()

    def __len__(self) -> int:
        """Return the number of keys."""
        return sum(map(len, self._sums.values()))

    def learn(self, time: int, item_id: str, query: str | None = None, previous: Sequence[str] = ()) -> None:
        """Count a click at an event time (ms), made after `query` and after clicks on the items `previous`."""
        keys = [POPULAR + item_id]
        if query and (name := normalise(query)):
            keys.append(QUERY + name)
        keys.extend(FOLLOWED + before for before in dict.fromkeys(previous))
        for key in keys:
            half_life = self._half_lives[key[0]]
            period = math.floor(time / half_life / PERIOD)
            sums = {item_id: 2.0 ** (time / half_life - PERIOD * period)}
            self._add(key, period, sums)
            _into(self._delta, key, period, sums)

    def unlearn(self, time: int, item_id: str, query: str) -> None:
        """Forget that a click was made after `query`, which may be personal: the next `take_unlearned` has it.

        Nothing changes here yet: the memory forgets with the record that the topic holds, as those of all workers do. What it is
        taken off from is on the topic before it, whichever worker has put it there.
        """
        if name := normalise(query):
            half_life = self._half_lives[QUERY]
            period = math.floor(time / half_life / PERIOD)
            _into(self._unlearned, QUERY + name, period, {item_id: 2.0 ** (time / half_life - PERIOD * period)})

    def take_unlearned(self) -> bytes | None:
        """Return what `unlearn` was told since the last call, for `merge` of every worker; None where there was nothing."""
        if not self._unlearned:
            return None
        sums, self._unlearned = self._unlearned, {}
        return msgspec.msgpack.encode(Delta(UNLEARNED, self._half_lives, sums))

    def take_delta(self) -> bytes | None:
        """Return what `learn` added since the last call, for `merge` of another worker; None where it added nothing."""
        if not self._delta:
            return None
        delta, self._delta = self._delta, {}
        return msgspec.msgpack.encode(Delta(FORMAT, self._half_lives, delta))

    def merge(self, delta: bytes) -> None:
        """Add what another worker learned, or take off what is to be forgotten.

        In whatever order deltas come, the sums are the same up to rounding; but what is taken off has to come after what it is taken
        off from. A delta counts as often as it is merged: leaving out repeats, and this worker's own, is up to the caller.

        Raises:
            ValueError: if it is no delta, or one of other half-lives.
        """
        try:
            decoded = msgspec.msgpack.decode(delta, type=Delta)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a delta of the memory: {error}") from error
        forget = decoded.version == UNLEARNED
        self._check(FORMAT if forget else decoded.version, decoded.half_lives, self._half_lives)
        for key in decoded.sums:
            if key[:1] not in self._sums:
                raise ValueError(f"not a delta of the memory: key {key!r}")
        for key, sums in decoded.sums.items():
            if forget:
                self._take_off(key, sums)
            else:
                self._add(key, sums.period, sums.masses)

    def export_changes(self) -> dict[bytes, bytes | None]:
        """Return every key that changed since the last call: its value for `load`, or None where it was dropped."""
        changed, self._changed = self._changed, set()
        result: dict[bytes, bytes | None] = {}
        for key in sorted(changed):
            sums = self._sums[key[0]].get(key[1:])
            stored = None if sums is None else Stored(FORMAT, self._half_lives[key[0]], sums)
            result[key.encode()] = None if stored is None else msgspec.msgpack.encode(stored)
        return result

    def load(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over what `export_changes` returned, into an empty memory.

        Raises:
            ValueError: if a value is of another format or half-life.
        """
        for raw, value in stored:
            key = raw.decode()
            if key[:1] not in self._sums:
                raise ValueError(f"not a key of the memory: {key!r}")
            try:
                record = msgspec.msgpack.decode(value, type=Stored)
            except msgspec.MsgspecError as error:
                raise ValueError(f"not a value of the memory, at {key!r}: {error}") from error
            self._check(record.version, record.half_life, self._half_lives[key[0]])
            self._add(key, record.sums.period, record.sums.masses)
        self._changed.clear()

    def popularity(self, item_id: str, time: int) -> float:
        """Return an item's clicks, decayed to `time` (ms)."""
        sums = self._sums[POPULAR].get(item_id)
        return 0.0 if sums is None else sums.masses[item_id] * self._decay(POPULAR, sums.period, time)

    def after_query(self, query: str, time: int) -> dict[str, float]:
        """Return the clicks that followed this normalised query, by item, decayed to `time` (ms)."""
        return self._after(QUERY, [(query, 1.0)], time)

    def after_similar_queries(self, query: str, time: int) -> dict[str, float]:
        """Return the clicks that followed the queries nearest to this normalised one, weighted by how near they are."""
        return self._after(QUERY, self.queries.similar(query), time)

    def after_items(self, items: Sequence[str], time: int) -> dict[str, float]:
        """Return the clicks that followed clicks on these items, latest first; the further back, the less."""
        return self._after(FOLLOWED, [(item, 1.0 / (back + 1)) for back, item in enumerate(items)], time)

    def _after(self, kind: str, names: Iterable[tuple[str, float]], time: int) -> dict[str, float]:
        known = self._sums[kind]
        total: dict[str, float] = {}
        factors: dict[int, float] = {}  # nearly always of one period
        for name, weight in names:
            sums = known.get(name)
            if sums is not None:
                if (decay := factors.get(sums.period)) is None:
                    decay = factors[sums.period] = self._decay(kind, sums.period, time)
                factor = weight * decay
                for item, mass in sums.masses.items():
                    total[item] = total.get(item, 0.0) + factor * mass
        return total

    def _decay(self, kind: str, period: int, time: int) -> float:
        # Above 1 only for an event from before the period, to which the sums would be without bounds.
        exponent = PERIOD * period - time / self._half_lives[kind]
        return math.exp2(min(0.0, exponent))

    def _add(self, key: str, period: int, masses: Mapping[str, float]) -> None:
        kind, name = key[0], key[1:]
        sums = self._sums[kind]
        if kind == QUERY and name not in sums:
            self.queries.add(name)
        kept = _into(sums, name, period, masses)
        self._changed.add(key)
        if kind == POPULAR:
            self.popularity_changed.add(name)
        if len(kept.masses) > 2 * self._settings.memory_items_per_key:
            heaviest = sorted(kept.masses.items(), key=_by_mass)[: self._settings.memory_items_per_key]
            kept.masses = dict(heaviest)
        if len(sums) > self._settings.memory_keys:
            self._forget(kind)

    def _take_off(self, key: str, gone: Sums) -> None:
        """Subtract what was added before. A key of which nothing remains goes, and its text with it."""
        kind, name = key[0], key[1:]
        kept = self._sums[kind].get(name)
        if kept is None:
            return
        down = min(PERIOD * (gone.period - kept.period), 1000)
        for item, mass in gone.masses.items():
            mass = math.ldexp(mass, down)
            left = kept.masses.pop(item, 0.0) - mass
            if left > TRACE * mass:
                kept.masses[item] = left
        self._changed.add(key)
        if not kept.masses:
            del self._sums[kind][name]
            if kind == QUERY:
                self.queries.rebuild(list(self._sums[QUERY]))

    def _forget(self, kind: str) -> None:
        """Drop the tenth of the keys that has faded most."""
        sums = self._sums[kind]
        weights = {name: math.log2(sum(s.masses.values()) or 1e-300) + PERIOD * s.period for name, s in sums.items()}
        faded = sorted(sums, key=lambda name: (weights[name], name))
        for name in faded[: len(sums) // 10 + 1]:
            del sums[name]
            self._changed.add(kind + name)
            if kind == POPULAR:
                self.popularity_changed.add(name)
        if kind == QUERY:
            self.queries.rebuild(list(sums))

    @staticmethod
    def _check(version: int, half_life: object, expected: object) -> None:
        if version != FORMAT:
            raise ValueError(f"memory of format {version}, not {FORMAT}")
        if half_life != expected:
            raise ValueError(f"memory with half-lives {half_life} ms, not {expected}: start from an empty one")


def _by_mass(pair: tuple[str, float]) -> tuple[float, str]:
    return -pair[1], pair[0]


def _into(sums: dict[str, Sums], key: str, period: int, masses: Mapping[str, float]) -> Sums:
    known = sums.get(key)
    if known is None:
        known = sums[key] = Sums(period, {})
    known.add(period, masses)
    return known
