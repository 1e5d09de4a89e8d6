"""The page that one looks at after a run."""

from ameir_merlin.report.page import render

__all__ = ["render"]
