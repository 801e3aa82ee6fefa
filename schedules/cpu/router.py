"""Router scores: ReLU, then the norm over the expert axis (BlockFFN, eq. 2-3)."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import CpuTiles
from .norm import norm_row
from .vector import Register, for_lanes, kernel, load, over_rows, rows_var, splat, store, sum_over


@cache
def router(tiles: CpuTiles, experts: int, norm: str, eps: float, norm_scale: float,
           dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """scores = norm(relu(logits)); ``norm`` is "rms" (with a learned weight, zeros included),
    "sum" (divide by sum * norm_scale + 1e-5) or "none".

    Parameters: logits f32 [n, experts]; weight ``dtype`` [experts] if "rms"; scores f32 [n, experts].
    A score is exactly 0 where the logit is not positive: those experts are inactive.
    """
    with kernel(__name__) as k:
        n = rows_var()
        logits = k.tensor((n, experts))
        weight = k.tensor((experts,), dtype) if norm == "rms" else None
        scores = k.tensor((n, experts))

        def body(row: Any) -> None:
            def relu(i: Any, lanes: int) -> Any:
                return T.max(load(logits, row, i, lanes=lanes), splat(0.0, lanes))

            def write(value: Any, i: Any, lanes: int) -> None:
                store(scores, value, row, i, lanes=lanes)

            def add(i: Any, lanes: int, total: Register) -> None:
                total.set(total.get() + relu(i, lanes))

            if norm == "rms":
                norm_row(tiles, experts, eps, relu, weight, write)
            elif norm == "sum":
                total = sum_over(experts, tiles.lanes, add)
                divisor = Register(1, T.fma(total, T.float32(norm_scale), T.float32(1e-5)))
                for_lanes(experts, tiles.lanes, lambda i, lanes: write(
                    relu(i, lanes) / splat(divisor.get(), lanes), i, lanes))
            else:
                for_lanes(experts, tiles.lanes, lambda i, lanes: write(relu(i, lanes), i, lanes))

        over_rows(n, tiles.parallel_rows, body)
    return k.func
