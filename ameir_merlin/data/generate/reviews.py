"""Reviews in the layouts of Amazon Beauty and Steam: who bought what when, with a taste that can be learned.

Items stand on a ring of topics; a user walks along it, so that the next item is near the last ones. Sequence lengths
are skewed as the published ones: the shortest 5, the mean that of Table 7. Beside the users that stay there are some
with fewer reviews than five, and items likewise, for the 5-core filter to find.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ameir_merlin.data.generate import fields
from ameir_merlin.errors import UserError

WORDS = ("good", "nice", "it's ok", 'a "must"', "no", "weird }{ thing", "très bon", "back\\slash", "5/5")
FEW = 0.2  # users with fewer than five, beside the others


def beauty(folder: str | Path, *, users: int = 300, items: int = 200, seed: int = 1) -> dict[str, Any]:
    """Write `reviews_Beauty.json.gz` (one JSON object a line) and the same as `ratings_Beauty.csv` into `folder`."""
    folder, count = Path(folder), 0
    with (
        fields.opened(folder / "reviews_Beauty.json.gz") as reviews,
        fields.opened(folder / "ratings_Beauty.csv") as ratings,
    ):
        for user, item, day, text in _reviews(users, items, 8.876, seed):
            time, stars = int(day * 86_400), float(1 + (user * 7 + item) % 5)
            name, asin = f"A{user * 7919 % 10**13:013d}", f"B{item * 104_729 % 10**9:09d}"
            date = datetime.datetime.fromtimestamp(time, datetime.timezone.utc).strftime("%m %d, %Y")
            review = {
                "reviewerID": name, "asin": asin, "reviewerName": f"User {user}", "helpful": [0, 0],
                "reviewText": text, "overall": stars, "summary": text[:4], "unixReviewTime": time, "reviewTime": date,
            }  # fmt: skip
            reviews.write((json.dumps(review) + "\n").encode())
            ratings.write(f"{name},{asin},{stars},{time}\n".encode())
            count += 1
    return {"reviews": count}


def steam(folder: str | Path, *, users: int = 300, items: int = 200, seed: int = 1) -> dict[str, Any]:
    """Write `steam_reviews.json.gz` into `folder`, each line the text of a Python dictionary, as the publisher does."""
    count = 0
    with fields.opened(Path(folder) / "steam_reviews.json.gz") as file:
        for user, item, day, text in _reviews(users, items, 12.391, seed):
            review: dict[str, Any] = {
                "username": f"player {user} '{chr(0xC0 + user % 60)}'", "hours": round(item / 7, 1),
                "products": 1 + user % 90, "product_id": str(10 * (item + 1)), "page_order": count % 10,
                "date": datetime.date.fromordinal(719_163 + int(day)).isoformat(), "text": text,
                "early_access": item % 9 == 0, "page": 1 + count % 30,
            }  # fmt: skip
            if user % 3 == 0:
                review["user_id"] = f"7656119{user:010d}"
            if user % 5 == 0:
                review["compensation"] = "Product received for free"
            parts = [f"u'{key}': {_python2(value)}" for key, value in review.items()]
            file.write(("{" + ", ".join(parts) + "}\n").encode())
            count += 1
    return {"reviews": count}


def _python2(value: Any) -> str:
    """The text of a value as Python 2 wrote it: `ascii` quotes and escapes in the same way."""
    return f"u{value!a}" if isinstance(value, str) else repr(value)


def _reviews(users: int, items: int, mean: float, seed: int) -> Iterator[tuple[int, int, float, str]]:
    """(user, item, day since 1970, text) in an order that is not that of time."""
    if users < 20 or items < 120:
        raise UserError(f"generate: {users} users and {items} items, expected at least 20 and 120")
    generator = np.random.default_rng(seed)
    people = int(users * (1 + FEW))
    generated = generator.permutation(people)
    for user in generated.tolist():
        # 5 and a lognormal tail; a handful are very long, as in the real files.
        length = 5 + int(generator.lognormal(np.log(mean - 5) - 0.72, 1.2)) if user < users else 1 + user % 4
        length = min(length, items // 3)  # so that there are a hundred others to rank among
        place, day = generator.random(), 14_600 + 2_000 * generator.random()
        had: set[int] = set()
        rows = []
        for _ in range(length):
            for _ in range(50):
                place = (place + generator.normal(0.01, 0.02)) % 1.0
                # Near the topic, and of those the popular: small numbers stand close together on the ring.
                item = int(items * (place + generator.normal(0, 0.01))) % items
                if item not in had:
                    break
            else:
                item = int(generator.choice([i for i in range(items) if i not in had]))
            had.add(item)
            day += generator.exponential(20)
            rows.append((user, item, day, " ".join(generator.choice(WORDS, generator.integers(0, 6)))))
        generator.shuffle(rows)
        yield from rows
    for rare in range(items // 20):  # items that too few have
        yield int(generated[rare % people]), items + rare, 15_000.5, "rare"
