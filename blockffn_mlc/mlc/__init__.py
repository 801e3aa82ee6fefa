"""What MLC's engine needs of a library beside our own functions (docs/mlc.md)."""
