"""The steps of an exported ensemble: each file here becomes the `model.py` of one step, unchanged.

They run inside Triton's Python backend and find `ameir_merlin` beside themselves, as a copy of the few modules needed.
"""
