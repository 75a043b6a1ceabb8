"""A made-up shop and its visitors, for a demo without data of one's own. The same seed gives the same bytes.

Everything is invented. Visitors search (some misspell) and click within the interest that they have; some take up
another one at a moment that `Sample.truth` names, so that the demo can say which shifts were found, and how soon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from stream.events import Click, Item, Search
from stream.sample_shop import CATEGORIES, Category

START = 1_756_684_800_000  # 2025-09-01T00:00:00Z: in the past, since a worker refuses events from the future
DAYS = 21
USERS = 300
SHIFTING = 60  # of the users
DAY_MS = 86_400_000
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Shift:
    """A user took up another interest; `event_id` is the first event (a click) of the new one."""

    event_id: str
    from_category: str
    to_category: str


@dataclass(frozen=True)
class Sample:
    """The catalogue, the events in event-time order, and for each user whose interest changes, when (`truth`)."""

    items: list[Item]
    searches: list[Search]
    clicks: list[Click]
    truth: dict[str, Shift]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A search, or a click where `item` is given, without its event_id; `begins` marks the first of a new interest."""

    time: int
    user: str
    query: str | None = None
    item: Item | None = None
    position: int | None = None
    begins: tuple[str, str] | None = None


def make(seed: int = 7) -> Sample:
    """Return about 400 items, and 12,000 events of three weeks."""
    random = Random(seed)
    stocks: dict[str, list[Item]] = {}
    for name, category in CATEGORIES.items():
        stocks[name] = list(_stock(random, name, category, first=1000 + 100 * len(stocks)))
    shifting = set(random.sample(range(USERS), SHIFTING))
    steps: list[_Step] = []
    for number in range(USERS):
        steps += _Visitor(random, f"user-{number:03d}", number in shifting, stocks).steps()
    steps.sort(key=lambda step: (step.time, step.user))

    sample = Sample([item for stock in stocks.values() for item in stock], [], [], {})
    for number, step in enumerate(steps):
        event_id = f"e{number:06d}"
        if step.item is not None:
            sample.clicks.append(
                Click(
                    event_id=event_id,
                    user_id=step.user,
                    item_id=step.item.item_id,
                    timestamp=step.time,
                    query=step.query,
                    position=step.position,
                )
            )
        elif step.query is not None:
            sample.searches.append(Search(event_id=event_id, user_id=step.user, query=step.query, timestamp=step.time))
        if step.begins is not None:
            sample.truth[step.user] = Shift(event_id, *step.begins)
    return sample


def write(folder: Path, seed: int = 7) -> Sample:
    """Make the sample and write items, searches, clicks and truth as JSON lines into `folder`.

    `truth.jsonl` has a line for every user: user_id, shift_event_id, from_category, to_category; the last three are
    null where the interest stays.
    """
    sample = make(seed)
    users = sorted({click.user_id for click in sample.clicks})
    truth = [{"user_id": user, **_as_json(sample.truth.get(user))} for user in users]
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Iterable[object]] = {
        "items": sample.items,
        "searches": sample.searches,
        "clicks": sample.clicks,
        "truth": truth,
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(rows))
    return sample


def _as_json(shift: Shift | None) -> dict[str, str | None]:
    if shift is None:
        return {"shift_event_id": None, "from_category": None, "to_category": None}
    return {
        "shift_event_id": shift.event_id,
        "from_category": shift.from_category,
        "to_category": shift.to_category,
    }


def _stock(random: Random, name: str, category: Category, first: int) -> Iterator[Item]:
    """Yield a category's items, of each product the most popular first: some of its brands and variants."""
    number = first
    for product, (uses, variants) in category.products.items():
        kinds = [(brand, variant) for brand in category.brands for variant in variants]
        for brand, variant in random.sample(kinds, random.randint(4, 7)):
            yield Item(
                item_id=str(number),
                title=f"{brand} {product}, {variant}",
                category=name,
                text=f"Good for {' and '.join(random.sample(uses, 2))}.",
                attributes={"brand": brand, "product": product, "variant": variant},
            )
            number += 1


class _Visitor:
    """One user's visits over the weeks: a main interest, a side one, and for some a new one from a certain visit on."""

    def __init__(self, random: Random, user: str, shifting: bool, stocks: dict[str, list[Item]]) -> None:
        self._random = random
        self._user = user
        self._stocks = stocks
        self._main, self._side, self._new = random.sample(list(stocks), 3)
        # Somebody whose interest changes comes often enough for the change to be seen.
        visits = random.randint(19, 25) if shifting else random.randint(6, 16)
        self._change = round(visits * random.uniform(0.45, 0.6)) if shifting else visits
        self._favourites = {name: random.sample(list(CATEGORIES[name].products), 4) for name in stocks}
        days = sorted(random.randrange(DAYS) for _ in range(visits))
        self._times = sorted(START + day * DAY_MS + round(random.triangular(7, 23.5, 20) * HOUR_MS) for day in days)

    def steps(self) -> Iterator[_Step]:
        """Yield what the user does, in order of time."""
        end = 0
        for number, time in enumerate(self._times):
            time = max(time, end + 60_000)  # two visits of a user do not overlap
            for step in self._visit(number, time):
                end = step.time
                yield step

    def _visit(self, number: int, time: int) -> Iterator[_Step]:
        random = self._random
        if number == self._change:
            # A new interest begins with something seen elsewhere: a click without a search.
            item = self._results(self._new, random.choice(self._favourites[self._new]), "")[0]
            yield _Step(time=time, user=self._user, item=item, begins=(self._main, self._new))
            time += random.randrange(8_000, 90_000)
        category = self._interest(number)
        product = random.choice(self._favourites[category])
        query = _query(random, CATEGORIES[category], product) if random.random() < 0.75 else None
        results = self._results(category, product, query or "")
        if query is not None:
            query = _misspell(random, query) if random.random() < 0.12 else query
            yield _Step(time=time, user=self._user, query=query)
        clicks = random.choices((1, 2, 3, 4), (30, 34, 22, 14))[0]
        for position in sorted(_distinct(random, min(clicks, len(results)), len(results))):
            time += random.randrange(8_000, 90_000)
            shown = position if query is not None else None
            yield _Step(time=time, user=self._user, query=query, item=results[position], position=shown)

    def _interest(self, number: int) -> str:
        if number < self._change:
            return self._random.choices((self._main, self._side), (88, 12))[0]
        return self._random.choices((self._new, self._side, self._main), (88, 8, 4))[0] if number > self._change else self._new

    def _results(self, category: str, product: str, query: str) -> list[Item]:
        """Return what the shop's search would list: the product's items, those that the query names first."""
        found = [item for item in self._stocks[category] if item.attributes and item.attributes["product"] == product]

        def named(item: Item) -> int:
            attributes = item.attributes or {}
            return sum(attributes[part].lower() in query for part in ("brand", "variant"))

        return sorted(found, key=named, reverse=True)


def _distinct(random: Random, count: int, length: int) -> set[int]:
    """Draw positions of a list, the upper ones more often."""
    drawn: set[int] = set()
    while len(drawn) < count:
        drawn.add(random.choices(range(length), [1 / (position + 1) for position in range(length)])[0])
    return drawn


def _query(random: Random, category: Category, product: str) -> str:
    uses, variants = category.products[product]
    use = random.choice(uses)
    forms = {
        f"{product}": 20,
        f"{random.choice(category.brands)} {product}": 20,
        f"{random.choice(variants)} {product}": 15,
        f"{product} for {use}": 20,
        f"best {product}": 5,
        f"what {product} is good for {use}": 5,
        f"I need something for {use}": 8,
        f"{product.split()[-1]}": 7,
    }
    return random.choices(list(forms), list(forms.values()))[0].lower()


def _misspell(random: Random, query: str) -> str:
    """Swap, drop or double one letter, never the first."""
    at = random.randrange(1, len(query) - 1)
    before, here, after = query[:at], query[at], query[at + 1 :]
    return random.choice((before + after[0] + here + after[1:], before + after, before + here + here + after))
