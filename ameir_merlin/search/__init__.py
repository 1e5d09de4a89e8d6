"""The search: fair training of one-shot models, scoring of candidates, and the three steps (Section 2.3)."""
