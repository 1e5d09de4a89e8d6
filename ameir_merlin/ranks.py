"""Several processes at one training: who each of them is, and what they tell each other."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ameir_merlin.errors import UserError
from ameir_merlin.seeds import derive

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TOGETHER = 1 << 20  # values from which on a tensor is sent by itself instead of copied together with others
LOOK = 0.1  # seconds between two looks whether there is word from the first process


class Lost(UserError):
    """Another of the processes is gone."""


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@dataclass(frozen=True)
class Ranks:
    """This process among `size` that hold equal weights and make the same steps. One process is the case of size 1.

    All methods but `own` and `part` are to be called by every rank, in the same order; with size 1 they do nothing.
    They raise `Lost` where a rank has ended. device: this rank's, as torch names it; "" leaves it open.
    store: torch's key-value store between the processes, for `tell` and `told`.
    """

    rank: int = 0
    size: int = 1
    device: str = ""
    store: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """A seed for what is to differ between ranks (dropout); the first's is `seed` itself."""
        return seed if self.first else derive(seed, "rank", self.rank)

    def part(self, count: int) -> range:
        """This rank's share of `count` things, next to each other; the ranks' shares differ by one at most."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def own(self, things: Iterable[T]) -> Iterator[T]:
        """Every `size`-th of `things`, so that all ranks together have each once; see `collect`."""
        return itertools.islice(things, self.rank, None, self.size)

    def collect(self, made: list[T]) -> list[T]:
        """What all ranks made of their `own` things, in the order of the things."""
        rows = itertools.zip_longest(*self.gather(made), fillvalue=_NONE)
        return [thing for row in rows for thing in row if thing is not _NONE]

    def gather(self, value: T) -> list[T]:
        """Every rank's `value` (CPU tensors and plain values), by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _speaking():
            dist.all_gather_object(values, value)
        return values

    def agree(self, value: T) -> T:
        """The first rank's `value`."""
        return self.gather(value)[0]

    def meet(self) -> None:
        """Wait for all, for instance until the first has written what the others are to read."""
        self.gather(None)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks. Small ones travel together: a few calls, not one each.

        With size 1 `tensors` is not even looked at: a walk through a net's weights in each step would be felt.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        every = list(tensors)
        large = [t for t in every if t.numel() >= TOGETHER]
        small = [t for t in every if t.numel() < TOGETHER]
        together = [torch.cat([t.flatten() for t in small])] if small else []
        with _speaking():
            for tensor in large + together:
                dist.all_reduce(tensor)
        for flat in together:
            for tensor, total in zip(small, flat.split([t.numel() for t in small])):
                tensor.copy_(total.view_as(tensor))

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the first rank's."""
        if self.size == 1:
            return
        import torch.distributed as dist

        with _speaking():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def tell(self, word: Any) -> None:
        """Say `word`, plain JSON, to all others; only the first does."""
        if self.store is not None:
            with _speaking():
                self.store.set(f"word {self.store.add('words', 1)}", json.dumps(word))

    def told(self) -> Iterator[Any]:
        """The words of the first, as they come. It waits without a limit of time: preparing data may take hours."""
        for number in itertools.count(1):
            with _speaking():
                while not self.store.check([f"word {number}"]):
                    time.sleep(LOOK)
                word = json.loads(self.store.get(f"word {number}"))
            yield word


ONE = Ranks()
_NONE: Any = object()


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    """What torch raises where a peer is gone, as `Lost`."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError is one, too
        # Of gloo's "[file.cc:553] Connection closed by peer [127.0.0.1]:1955. This is typically caused by …"
        reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
        raise Lost(
            f"another process of this run has ended ({reason}); the same command goes on from the last checkpoint"
        ) from error
