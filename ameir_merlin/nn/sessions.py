"""Behaviours cut into sessions (Feng et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def starts_by_gap(times: Tensor, gap: int) -> Tensor:
    """Where a session begins, bool `[B, T]`: where more than `gap` lie between a behaviour and the one before.

    times: int64 `[B, T]`, in the unit of `gap`.
    """
    return F.pad(times.diff(dim=1).abs() > gap, (1, 0), value=True)


def starts_by_count(length: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Where a run of `size` behaviours begins, counted from the latest one: bool `[1, length]`."""
    return ((length - torch.arange(length, device=device)) % size == 0).unsqueeze(0)


def split(hidden: Tensor, mask: Tensor, starts: Tensor, sessions: int, size: int) -> tuple[Tensor, Tensor]:
    """The latest `sessions` sessions, of each the latest `size` behaviours, both padded at the front.

    hidden `[B, T, d]`; mask bool `[B, T]`, True = real; starts bool `[B, T]` or `[1, T]`, True where a session begins.
    Returns `[B, sessions, size, d]`, zero where padded, and its mask `[B, sessions, size]`.
    """
    rows, length, dim = hidden.shape
    starts = starts.expand(rows, -1)
    # ends[t]: whether t is the last of its session; after[t]: how many sessions begin later
    ends = F.pad(starts[:, 1:], (0, 1), value=True)
    after = starts.flip(1).cumsum(1).flip(1) - starts.long()
    place = torch.arange(length, device=hidden.device)
    last = torch.where(ends, place, length).flip(1).cummin(1).values.flip(1)
    back = last - place  # behaviours of the same session that come later
    kept = mask & (after < sessions) & (back < size)
    slot = (sessions - 1 - after) * size + (size - 1 - back)
    spare = sessions * size  # whatever is not kept goes here
    source = torch.full((rows, spare + 1), length, device=hidden.device)  # place `length` holds zeros
    source.scatter_(1, torch.where(kept, slot, spare), torch.where(kept, place, length))
    source = source[:, :spare]
    padded = F.pad(hidden, (0, 0, 0, 1))
    found = padded.gather(1, source.unsqueeze(2).expand(-1, -1, dim))
    return found.view(rows, sessions, size, dim), (source < length).view(rows, sessions, size)
