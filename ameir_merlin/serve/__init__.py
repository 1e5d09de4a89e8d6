"""Serving: preprocessing compiled to arrays, Triton repositories, starting tritonserver, a client.

Nothing here loads a pickle or imports the data stack. The parts that run inside Triton (`preprocess`, `manifest`,
`scoring`, `backends`) are copied into the repository that `repository.export` writes, so that a server needs only
numpy, and torch for the model step.
"""
