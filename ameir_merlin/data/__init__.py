"""From the publisher's files to batches: definitions, NVTabular workflows, prepared Parquet, loaders.

Merlin is imported in `ops` and `workflow` only; `parquet` reads prepared data with pyarrow and torch alone.
"""
