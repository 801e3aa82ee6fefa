"""MLC's engine, emulated: whether it could run an artifact (docs/mlc.md)."""
