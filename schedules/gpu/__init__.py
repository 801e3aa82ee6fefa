"""The GPU family: work-group kernels for OpenCL and its like (Adreno, Mali, any other GPU)."""

from ..builder import ORIGIN
from ..layout import FLOAT_FORMATS, Q4_FORMATS
from .linear import linear

FORMATS = (*FLOAT_FORMATS, *Q4_FORMATS)  # weight formats these kernels read

__all__ = ["FORMATS", "ORIGIN", "linear"]
