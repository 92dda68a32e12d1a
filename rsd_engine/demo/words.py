"""Word lists of the demo problems.

The lists are short on purpose: each word becomes a token of a vocabulary of a few hundred, so a
problem has about a hundred tokens, and a tiny model sees every word often.
"""

from __future__ import annotations

from typing import NamedTuple

WOMEN = (
    "Anna", "Bella", "Clara", "Daisy", "Emma", "Grace", "Hannah", "Julia",
    "Kate", "Lily", "Mia", "Nora", "Olivia", "Rosa", "Sara", "Zoe",
)  # fmt: skip
MEN = (
    "Adam", "Ben", "Carlos", "David", "Eric", "Frank", "George", "Henry",
    "Ivan", "Jack", "Kevin", "Leo", "Max", "Noah", "Oscar", "Tom",
)  # fmt: skip
NAMES = WOMEN + MEN

THINGS = (
    "apples", "marbles", "stickers", "books", "pencils", "coins", "cards", "shells",
    "stamps", "cookies", "balloons", "beads", "buttons", "crayons", "flowers", "toys",
    "oranges", "peaches", "ribbons", "blocks",
)  # fmt: skip
GOODS = (
    "notebooks", "shirts", "hats", "cups", "plates", "pies", "cakes", "candles",
    "mugs", "posters", "lamps", "toys", "books", "plants",
)  # fmt: skip
BOXES = (("box", "boxes"), ("bag", "bags"), ("jar", "jars"), ("basket", "baskets"))
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
RELATIVES = ("aunt", "uncle", "sister", "brother", "grandmother", "friend")
PLACES = ("park", "store", "library", "market", "school", "beach")


class Deed(NamedTuple):
    """Something that people do with countable things, in the forms that English needs."""

    does: str  # third person: "Tom picks 5 apples"
    do: str  # plain form: "how many apples does Tom pick"
    things: tuple[str, ...]


DEEDS = (
    Deed("has", "have", THINGS),
    Deed("has", "have", THINGS),
    Deed("picks", "pick", ("apples", "flowers", "oranges", "peaches")),
    Deed("sells", "sell", ("tickets", "cookies", "cakes", "books", "balloons")),
    Deed("reads", "read", ("pages", "books", "stories")),
    Deed("makes", "make", ("cakes", "toys", "posters", "candles", "pies")),
    Deed("scores", "score", ("points", "goals")),
    Deed("plants", "plant", ("trees", "flowers", "seeds")),
    Deed("runs", "run", ("laps", "miles")),
    Deed("finds", "find", ("shells", "coins", "eggs")),
)


class Maker(NamedTuple):
    """A place that makes goods in batches, for the production stories."""

    place: str
    verb: str
    batches: str
    goods: tuple[str, ...]


MAKERS = (
    Maker("bakery", "bakes", "trays", ("cookies", "pies", "cakes")),
    Maker("farm", "picks", "baskets", ("apples", "oranges", "peaches", "eggs")),
    Maker("factory", "makes", "boxes", ("toys", "lamps", "mugs", "candles")),
    Maker("shop", "orders", "boxes", ("notebooks", "posters", "cups", "hats")),
    Maker("school", "buys", "packs", ("pencils", "crayons", "books", "notebooks")),
)
