"""Files of both publishers' layouts for the tests of `benchmarks.rivals`."""

from __future__ import annotations

import gzip
import random
from pathlib import Path


def raw_files(folder: Path) -> Path:
    """Made-up rows in `folder`, which is returned."""
    rng = random.Random(3)
    head = "user_id,item_id,age,gender,occupation,zip_code,release_year,class,hist,timestamp,label,split"
    lines = [head]
    for number in range(90):
        split = "train" if number < 60 else "valid" if number < 75 else "test"
        who, what = rng.randint(1, 6), rng.randint(1, 9)
        lines.append(
            f"{who},{what},{20 + who},M,writer,0{who},199{what},Comedy Children's,{rng.randint(1, 9)},"
            f"{880000000 + number * 4000},{rng.randint(0, 1)},{split}"
        )
    (folder / "ml100k_ctr.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    # 100 negatives of each of 12 users, and each item in some training row
    pool = [i for n in range(12) for i in rng.sample(range(1, 141), 140)[n : n + 12]] + list(range(1, 141))
    users = [(u, list(dict.fromkeys(pool[u * 23 : u * 23 + 23]))) for u in range(12)]
    text = "\n".join(" ".join(map(str, [u + 1, *items])) for u, items in users)
    (folder / "beauty.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder
