"""Checksums of Parquet pages, where pyarrow knows them: from 15 on. The NGC image of 2023 has an earlier one."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_KNOWN = int(pa.__version__.split(".")[0]) >= 15

WRITTEN: dict[str, Any] = {"write_page_checksum": True} if _KNOWN else {}
CHECKED: dict[str, Any] = {"page_checksum_verification": True} if _KNOWN else {}
