"""Ratings in the layout of MovieLens-100K as RecBole ships it: tab-separated, headers of name:type.

Users like some genres and years more than others; times come in sessions, so that many ratings share a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ameir_merlin.data.generate import fields
from ameir_merlin.errors import UserError

GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
JOBS = ("student", "other", "educator", "engineer", "programmer", "writer", "librarian", "none")


def write(
    folder: str | Path, *, users: int = 60, items: int = 120, ratings: int = 3_000, seed: int = 1
) -> dict[str, Any]:
    """Write `ml-100k.inter`, `ml-100k.user` and `ml-100k.item` into `folder`."""
    if users < 1 or items < 1 or not 10 * users <= ratings <= users * items:
        raise UserError(f"generate movielens: {ratings} ratings, expected from 10 a user to {users * items}")
    folder, generator = Path(folder), np.random.default_rng(seed)
    films = [generator.choice(len(GENRES), generator.integers(1, 4), replace=False) for _ in range(items)]
    likes = generator.normal(size=(users, len(GENRES)))
    lines = []
    share = np.full(users, ratings // users)
    share[: ratings % users] += 1
    for user, count in enumerate(np.minimum(share, items).tolist()):
        chosen = generator.choice(items, count, replace=False)
        moments = np.sort(874_724_710 + generator.integers(0, 10**6, count) // 40 * 40)
        for item, time in zip(chosen.tolist(), moments.tolist(), strict=True):
            stars = int(np.clip(np.rint(3.5 + likes[user][films[item]].mean() + generator.normal(0, 0.7)), 1, 5))
            lines.append(f"{user + 1}\t{item + 1}\t{stars}\t{time}")
    order = generator.permutation(len(lines))
    with fields.opened(folder / "ml-100k.inter") as file:
        file.write(b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
        file.write("".join(f"{lines[i]}\n" for i in order).encode())
    with fields.opened(folder / "ml-100k.user") as file:
        file.write(b"user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n")
        for user in range(users):
            age, job = generator.integers(7, 74), JOBS[generator.integers(len(JOBS))]
            zip_code = f"{generator.integers(1_000, 99_999):05d}"
            file.write(f"{user + 1}\t{age}\t{'MF'[user % 3 == 0]}\t{job}\t{zip_code}\n".encode())
    with fields.opened(folder / "ml-100k.item") as file:
        file.write(b"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n")
        for item in range(items):
            year = "" if item == 3 else str(1930 + generator.integers(69))
            names = " ".join(GENRES[g] for g in films[item])
            file.write(f'{item + 1}\tFilm "{item + 1}", The\t{year}\t{names}\n'.encode())
    return {"ratings": len(lines)}
