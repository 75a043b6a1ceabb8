"""What is learned across users: how popular each item is, and what was clicked after which query and which item.

All of it is sums of clicks that fade with event time. A sum does not care in which order its parts arrive, so workers
exchange what they added (`take_delta`, `merge`) and all come to know the same.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

import msgspec

from stream.recommend.clicks import PERIOD, Clicks, Terms, decay
from stream.recommend.ngrams import normalise
from stream.recommend.queries import KnownQueries
from stream.settings import Recommend

DAY = 86_400_000
FORMAT = 1
UNLEARNED = 2  # the format of what is to be taken off again
TRACE = 1e-9  # of a click: what is left of its sum after it was taken off and is less than this is rounding
NONE, ONE = array("d"), array("d", [1.0])  # weights
POPULAR, QUERY, FOLLOWED = "p", "q", "f"  # the first character of a key: of an item, of a query, of an item


class Sums(msgspec.Struct, array_like=True):
    """The clicks on some items, as they travel and are stored: `Clicks` by item_id."""

    period: int
    masses: dict[str, float]


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
        queries: those that clicks have followed.
        item_ids: the item of each number that the clicks name; others only after `compact`.
        generation: changes when `compact` has given items other numbers.
        popularity_changed: items whose popularity changed since a reader last emptied it.
    """

    def __init__(self, settings: Recommend) -> None:
        self._settings = settings
        self._half_lives = {
            POPULAR: settings.popularity_half_life_days * DAY,
            QUERY: settings.query_half_life_days * DAY,
            FOLLOWED: settings.followed_half_life_days * DAY,
        }
        self._clicks: dict[str, dict[str, Clicks]] = {POPULAR: {}, QUERY: {}, FOLLOWED: {}}
        self._delta: dict[str, Sums] = {}
        self._unlearned: dict[str, Sums] = {}
        self._changed: dict[str, set[str]] = {POPULAR: set(), QUERY: set(), FOLLOWED: set()}
        self.queries = KnownQueries(settings.neighbours, settings.neighbour_sharpness)
        self.item_ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self.generation = 0
        self._compact_at = 4 * settings.memory_keys
        self.popularity_changed: set[str] = set()

    def __len__(self) -> int:
        """Return the number of keys."""
        return sum(map(len, self._clicks.values()))

    def learn(self, time: int, item_id: str, query: str | None = None, previous: Sequence[str] = ()) -> None:
        """Count a click at an event time (ms), made after `query` and after clicks on the items `previous`."""
        self._learn(POPULAR, (item_id,), time, item_id)
        if query and (name := normalise(query)):
            self._learn(QUERY, (name,), time, item_id)
        if previous:
            self._learn(FOLLOWED, dict.fromkeys(previous), time, item_id)

    def _learn(self, kind: str, names: Iterable[str], time: int, item_id: str) -> None:
        period, mass = self._mass(kind, time)
        number = self._number(item_id)
        for name in names:
            self._add(kind, name, period, ((number, mass),))
            _add_to(self._delta, kind + name, period, item_id, mass)

    def _mass(self, kind: str, time: int) -> tuple[int, float]:
        """Return what a click counts: the period of its time, and 2^(age in half-lives) since the period's beginning."""
        age = time / self._half_lives[kind]
        period = math.floor(age / PERIOD)
        return period, 2.0 ** (age - PERIOD * period)

    def _number(self, item_id: str) -> int:
        number = self._numbers.get(item_id)
        if number is None:
            number = self._numbers[item_id] = len(self.item_ids)
            self.item_ids.append(item_id)
        return number

    def unlearn(self, time: int, item_id: str, query: str) -> None:
        """Forget that a click was made after `query`, which may be personal: the next `take_unlearned` has it.

        Nothing changes here yet: the memory forgets with the record that the topic holds, as those of all workers do. What it is
        taken off from is on the topic before it, whichever worker has put it there.
        """
        if name := normalise(query):
            period, mass = self._mass(QUERY, time)
            _add_to(self._unlearned, QUERY + name, period, item_id, mass)

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
            if key[:1] not in self._clicks:
                raise ValueError(f"not a delta of the memory: key {key!r}")
        for key, sums in decoded.sums.items():
            if forget:
                self._take_off(key, sums)
            else:
                self._merge(key, sums)

    def export_changes(self) -> dict[bytes, bytes | None]:
        """Return every key that changed since the last call: its value for `load`, or None where it was dropped."""
        result: dict[bytes, bytes | None] = {}
        for kind, changed in self._changed.items():
            for name in sorted(changed):
                clicks = self._clicks[kind].get(name)
                value = None
                if clicks is not None:
                    sums = Sums(clicks.period, {self.item_ids[number]: mass for number, mass in clicks})
                    value = msgspec.msgpack.encode(Stored(FORMAT, self._half_lives[kind], sums))
                result[(kind + name).encode()] = value
            changed.clear()
        return result

    def load(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over what `export_changes` returned, into an empty memory.

        Raises:
            ValueError: if a value is of another format or half-life.
        """
        for raw, value in stored:
            key = raw.decode()
            if key[:1] not in self._clicks:
                raise ValueError(f"not a key of the memory: {key!r}")
            try:
                record = msgspec.msgpack.decode(value, type=Stored)
            except msgspec.MsgspecError as error:
                raise ValueError(f"not a value of the memory, at {key!r}: {error}") from error
            self._check(record.version, record.half_life, self._half_lives[key[0]])
            self._merge(key, record.sums)
        for changed in self._changed.values():
            changed.clear()

    def number(self, item_id: str) -> int | None:
        """Return the number by which clicks name an item; None where none does."""
        return self._numbers.get(item_id)

    def popular_items(self) -> Iterable[str]:
        """Return all items whose popularity is known."""
        return self._clicks[POPULAR].keys()

    def popularity(self, item_id: str, time: int) -> float:
        """Return an item's clicks, decayed to `time` (ms)."""
        clicks = self._clicks[POPULAR].get(item_id)
        return 0.0 if clicks is None else clicks.masses[0] * decay(clicks.period, time / self._half_lives[POPULAR])

    def after_query(self, query: str, time: int) -> Terms:
        """Return the clicks that followed this normalised query, decayed to `time` (ms)."""
        clicks, age = self._clicks[QUERY].get(query), time / self._half_lives[QUERY]
        return Terms(NONE, (), age) if clicks is None else Terms(ONE, (clicks,), age)

    def after_similar_queries(self, query: str, time: int) -> Terms:
        """Return the clicks that followed the queries nearest to this normalised one, weighted by how near they are."""
        near = self.queries.similar(query)
        return Terms(near.weights, near.clicks, time / self._half_lives[QUERY])

    def after_items(self, items: Sequence[str], time: int) -> Terms:
        """Return the clicks that followed clicks on these items, latest first; the further back, the less."""
        known, weights, found = self._clicks[FOLLOWED], array("d"), []
        for back, item in enumerate(items, 1):
            if (clicks := known.get(item)) is not None:
                weights.append(1.0 / back)
                found.append(clicks)
        return Terms(weights, found, time / self._half_lives[FOLLOWED])

    def by_item(self, terms: Terms) -> dict[str, float]:
        """Return the sum of some terms by item."""
        total: dict[str, float] = {}
        for weight, clicks in zip(terms.weights, terms.clicks, strict=True):
            factor = weight * decay(clicks.period, terms.age)
            for number, mass in clicks:
                item_id = self.item_ids[number]
                total[item_id] = total.get(item_id, 0.0) + factor * mass
        return total

    def _merge(self, key: str, sums: Sums) -> None:
        self._add(key[0], key[1:], sums.period, [(self._number(item), mass) for item, mass in sums.masses.items()])

    def _add(self, kind: str, name: str, period: int, masses: Iterable[tuple[int, float]]) -> None:
        known = self._clicks[kind]
        clicks = known.get(name)
        if clicks is None:
            clicks = known[name] = Clicks(period)
            if kind == QUERY:
                self.queries.add(name, clicks)
        for number, mass in masses:
            clicks.add(number, period, mass)
        self._changed[kind].add(name)
        if kind == POPULAR:
            self.popularity_changed.add(name)
        if len(clicks) > 2 * self._settings.memory_items_per_key:
            heaviest = sorted(clicks, key=lambda pair: (-pair[1], self.item_ids[pair[0]]))
            clicks.replace(heaviest[: self._settings.memory_items_per_key])
        if len(known) > self._settings.memory_keys:
            self._forget(kind)

    def _take_off(self, key: str, gone: Sums) -> None:
        """Subtract what was added before. A key of which nothing remains goes, and its text with it."""
        kind, name = key[0], key[1:]
        known = self._clicks[kind]
        clicks = known.get(name)
        if clicks is None:
            return
        left = dict(clicks)
        down = min(PERIOD * (gone.period - clicks.period), 1000)
        for item, mass in gone.masses.items():
            number, mass = self._number(item), math.ldexp(mass, down)
            rest = left.pop(number, 0.0) - mass
            if rest > TRACE * mass:
                left[number] = rest
        clicks.replace(left.items())
        self._changed[kind].add(name)
        if not left:
            del known[name]
            if kind == QUERY:
                self.queries.rebuild(known)

    def _forget(self, kind: str) -> None:
        """Drop the tenth of the keys that has faded most."""
        known = self._clicks[kind]
        weights = {name: math.log2(sum(c.masses) or 1e-300) + PERIOD * c.period for name, c in known.items()}
        faded = sorted(known, key=lambda name: (weights[name], name))
        for name in faded[: len(known) // 10 + 1]:
            del known[name]
            self._changed[kind].add(name)
            if kind == POPULAR:
                self.popularity_changed.add(name)
        if kind == QUERY:
            self.queries.rebuild(known)

    def compact(self) -> None:
        """Once in a while, give the numbers of items that no key remembers to others. Terms taken before are void then."""
        if len(self.item_ids) <= self._compact_at:
            return
        before, self.item_ids, self._numbers = self.item_ids, [], {}
        for known in self._clicks.values():
            for clicks in known.values():
                pairs = []
                for number, mass in clicks:
                    item_id = before[number]
                    if item_id not in self._numbers:
                        self._numbers[item_id] = len(self.item_ids)
                        self.item_ids.append(item_id)
                    pairs.append((self._numbers[item_id], mass))
                clicks.replace(pairs)
        self.generation += 1
        self._compact_at = max(4 * self._settings.memory_keys, 2 * len(self.item_ids))

    @staticmethod
    def _check(version: int, half_life: object, expected: object) -> None:
        if version != FORMAT:
            raise ValueError(f"memory of format {version}, not {FORMAT}")
        if half_life != expected:
            raise ValueError(f"memory with half-lives {half_life} ms, not {expected}: start from an empty one")


def _add_to(delta: dict[str, Sums], key: str, period: int, item_id: str, mass: float) -> None:
    sums = delta.get(key)
    if sums is None:
        delta[key] = Sums(period, {item_id: mass})
        return
    if period > sums.period:
        down = PERIOD * (sums.period - period)
        sums.masses = {item: math.ldexp(known, down) for item, known in sums.masses.items()}
        sums.period = period
    sums.masses[item_id] = sums.masses.get(item_id, 0.0) + math.ldexp(mass, PERIOD * (period - sums.period))
