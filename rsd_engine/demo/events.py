"""Story families in which one quantity changes event by event.

Where `stories` compares two people in each step, here one running value goes through purchases,
gifts, batches and prices, and some events take two dependent steps.
"""

from __future__ import annotations

from collections.abc import Callable

from rsd_engine.demo import words
from rsd_engine.demo.stories import LIMIT, Story, Unusable, ages, between, days, people, pick


def _factors(story: Story, most: int) -> tuple[int, int]:
    """Two small factors whose product stays within `most`."""
    if most < 6:
        raise Unusable
    one = between(story.rng, 2, min(9, most // 2))
    return one, between(story.rng, 2, min(9, most // one))


def _gain(story: Story, who: str, things: str) -> None:
    amount = between(story.rng, 2, 20)
    friend = pick(story.rng, story.cast[1:6])
    relative = pick(story.rng, words.RELATIVES)
    story.say(
        f"{who} buys {amount} more {things}.",
        f"Then {friend} gives {who} {amount} more {things}.",
        f"Then {who} finds {amount} {things} at the {pick(story.rng, words.PLACES)}.",
        f"{who}'s {relative} brings {amount} more {things}.",
    )
    story.work(f"{who} now has {{}} {things}.", story.value, "+", amount)


def _lose(story: Story, who: str, things: str) -> None:
    amount = between(story.rng, 2, min(20, max(2, story.value - 3)))
    friend = pick(story.rng, story.cast[1:6])
    story.say(
        f"{who} gives {amount} {things} to {friend}.",
        f"Then {who} loses {amount} of the {things}.",
        f"After that, {who} sells {amount} {things}.",
        f"{friend} borrows {amount} {things} from {who}.",
    )
    story.work(f"{who} now has {{}} {things}.", story.value, "-", amount)


def _scale(story: Story, who: str, things: str) -> None:
    friend = pick(story.rng, story.cast[1:6])
    if story.value <= 30 and (story.value % 2 or story.rng.random() < 0.5):
        story.say(
            f"Then {who} doubles the number of {things}.",
            f"By the next day, {who} has twice as many {things}.",
        )
        story.work(f"{who} now has {{}} {things}.", story.value, "*", 2)
    else:
        story.say(
            f"Then {who} gives half of the {things} to {friend}.",
            f"{who} sells half of the {things}.",
        )
        story.work(f"{who} now has {{}} {things}.", story.value, "/", 2)


def _packs(story: Story, who: str, things: str) -> None:
    boxes = pick(story.rng, words.BOXES)[1]
    count, each = _factors(story, LIMIT - story.value)
    before = story.value
    story.say(
        f"{who} buys {count} {boxes} with {each} {things} in each.",
        f"Then {who} gets {count} {boxes} of {each} {things} each.",
    )
    extra = story.work(f"The {boxes} hold {{}} {things}.", count, "*", each)
    story.work(f"{who} now has {{}} {things}.", before, "+", extra)


def _handout(story: Story, who: str, things: str) -> None:
    count, each = _factors(story, story.value - 3)
    before = story.value
    story.say(
        f"{who} gives {each} {things} to each of {count} friends.",
        f"Then {count} friends each get {each} {things} from {who}.",
    )
    gone = story.work(f"The friends get {{}} {things}.", count, "*", each)
    story.work(f"{who} now has {{}} {things}.", before, "-", gone)


def _share(story: Story, things: str) -> bool:
    """Ends with an equal share, if the value can be divided; returns whether it did."""
    parts = [k for k in range(2, 10) if story.value % k == 0 and story.value // k >= 2]
    if not parts:
        return False
    box, boxes = pick(story.rng, words.BOXES)
    count = pick(story.rng, parts)
    story.say(
        f"The {things} are then put equally into {count} {boxes}.",
        f"All the {things} are shared equally among {count} {boxes}.",
    )
    story.ask(f"How many {things} are in each {box}?", f"How many {things} does each {box} hold?")
    story.work(f"Each {box} holds {{}} {things}.", story.value, "/", count)
    return True


def keeping(story: Story) -> None:
    """A collection that grows and shrinks."""
    rng, who = story.rng, story.cast[0]
    things = pick(rng, words.THINGS)
    story.value = between(rng, 5, 40)
    story.say(
        f"{who} has {story.value} {things}.",
        f"{who} starts the day with {story.value} {things}.",
        f"In the morning, {who} has {story.value} {things}.",
    )
    shared = rng.random() < 0.3
    while story.left > shared:
        single = story.left - shared == 1 or rng.random() < 0.65
        if single:
            pick(rng, (_gain, _lose, _gain, _lose, _scale))(story, who, things)
        else:
            pick(rng, (_packs, _handout))(story, who, things)
    if shared:
        if not _share(story, things):
            raise Unusable
    else:
        story.ask(
            f"How many {things} does {who} have now?",
            f"How many {things} does {who} have in the end?",
        )


def making(story: Story) -> None:
    """Goods made in batches, sold, packed and priced."""
    rng = story.rng
    maker = pick(rng, words.MAKERS)
    goods, place = pick(rng, maker.goods), f"The {maker.place}"
    count, each = _factors(story, 80)
    story.say(
        f"A {maker.place} {maker.verb} {count} {maker.batches} of {each} {goods}.",
        f"{place} {maker.verb} {count} {maker.batches} with {each} {goods} in each.",
    )
    story.work(f"{place} has {{}} {goods}.", count, "*", each)
    shared = rng.random() < 0.4
    while story.left > shared:
        if story.left - shared >= 2 and rng.random() < 0.4:
            _batch(story, place, maker, goods)
        else:
            pick(rng, (_sale, _sale, _delivery))(story, place, goods)
    if shared:
        if not _share(story, goods):
            raise Unusable
    else:
        story.ask(
            f"How many {goods} does the {maker.place} have now?",
            f"How many {goods} are left at the {maker.place}?",
        )


def _batch(story: Story, place: str, maker: words.Maker, goods: str) -> None:
    before = story.value
    count, each = _factors(story, LIMIT - before)
    story.say(
        f"Then {place.lower()} {maker.verb} {count} more {maker.batches} of {each} {goods}.",
        f"Later {place.lower()} {maker.verb} {count} new {maker.batches} of {each} {goods}.",
    )
    extra = story.work(f"The new {maker.batches} hold {{}} {goods}.", count, "*", each)
    story.work(f"{place} has {{}} {goods}.", before, "+", extra)


def _sale(story: Story, place: str, goods: str) -> None:
    if story.value % 2 == 0 and story.value >= 8 and story.rng.random() < 0.3:
        story.say(f"{place} sells half of the {goods}.", f"Half of the {goods} are sold.")
        story.work(f"{place} has {{}} {goods}.", story.value, "/", 2)
        return
    amount = between(story.rng, 2, min(30, max(2, story.value - 3)))
    story.say(
        f"{place} sells {amount} {goods}.",
        f"Then {amount} of the {goods} break.",
        f"{story.cast[1]} buys {amount} of the {goods}.",
    )
    story.work(f"{place} has {{}} {goods}.", story.value, "-", amount)


def _delivery(story: Story, place: str, goods: str) -> None:
    amount = between(story.rng, 2, 20)
    story.say(
        f"A truck brings {amount} more {goods}.",
        f"{place} gets {amount} more {goods}.",
    )
    story.work(f"{place} has {{}} {goods}.", story.value, "+", amount)


def shopping(story: Story) -> None:
    """Several goods at a price each, then a coupon, change or an equal split."""
    rng, who = story.rng, story.cast[0]
    shelf = list(words.GOODS)
    ending = "none" if story.wanted % 2 else "change"
    total = 0
    while story.left > (ending != "none"):
        goods = shelf.pop(int(rng.random() * len(shelf)))
        count, price = _factors(story, min(40, LIMIT - total))
        story.say(
            f"{who} buys {count} {goods} for ${price} each.",
            f"{who} buys {count} {goods} that cost ${price} each.",
        )
        cost = story.work(f"The {goods} cost {{}} dollars.", count, "*", price)
        if total:
            total = story.work(f"So far {who} spends {{}} dollars.", total, "+", cost)
        else:
            total = cost
    _pay(story, who, total, ending)


def _pay(story: Story, who: str, total: int, ending: str) -> None:
    """Ends a shopping trip: with its last step, if one is still wanted."""
    rng = story.rng
    if ending == "none":
        story.ask(
            f"How many dollars does {who} spend in total?", f"How much does {who} spend in all?"
        )
    elif rng.random() < 0.5 and total > 8:
        off = between(rng, 2, min(15, total - 3))
        story.say(f"A coupon takes ${off} off the total.", f"{who} has a coupon for ${off} off.")
        story.ask(f"How many dollars does {who} pay?", f"How much does {who} pay in the end?")
        story.work(f"{who} pays {{}} dollars.", total, "-", off)
    else:
        budget = between(rng, total + 1, LIMIT) if total < LIMIT else 0
        story.say(f"{who} had ${budget} at first.", f"{who} brought ${budget} to the store.")
        story.ask(f"How many dollars does {who} have left?", f"How much is left for {who}?")
        story.work(f"{who} has {{}} dollars left.", budget, "-", total)


def saving(story: Story) -> None:
    """Money earned and spent."""
    rng, who = story.rng, story.cast[0]
    rate, count = _factors(story, 70)
    job, unit = pick(rng, (("earns", "hour"), ("saves", "week"), ("saves", "day")))
    story.say(f"{who} {job} ${rate} each {unit} for {count} {unit}s.")
    story.work(f"{who} has {{}} dollars.", rate, "*", count)
    while story.left:
        amount = between(rng, 2, min(25, max(2, story.value - 3)))
        relative = pick(rng, words.RELATIVES)
        if rng.random() < 0.45:
            story.say(
                f"{who}'s {relative} gives {who} ${amount}.",
                f"{who} earns ${amount} more by helping a {pick(rng, ('neighbor', 'teacher'))}.",
            )
            story.work(f"{who} has {{}} dollars.", story.value, "+", amount)
        elif story.value % 2 == 0 and rng.random() < 0.25:
            story.say(f"{who} spends half of the money at the {pick(rng, words.PLACES)}.")
            story.work(f"{who} has {{}} dollars.", story.value, "/", 2)
        else:
            story.say(
                f"{who} spends ${amount} at the {pick(rng, words.PLACES)}.",
                f"Then {who} pays ${amount} for some {pick(rng, words.GOODS)}.",
            )
            story.work(f"{who} has {{}} dollars.", story.value, "-", amount)
    story.ask(
        f"How many dollars does {who} have now?", f"How much money does {who} have in the end?"
    )


FAMILIES: dict[str, Callable[[Story], None]] = {
    "people": people,
    "ages": ages,
    "days": days,
    "keeping": keeping,
    "making": making,
    "shopping": shopping,
    "saving": saving,
}
