#!/usr/bin/env python3
"""Times the sparse feed-forward kernels on an OpenCL or Vulkan device by the size of the union of active experts.

    tools/ffn_by_union.py --tokens 1 8

Every token uses the same experts, so that each place of the union costs the same; weights are random. A row is the
shortest time of ``--rounds`` rounds over all sizes and the median in brackets; "of ideal" divides the shortest by that
share of the time with all experts. Times include the wait for the device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from blockffn_mlc.errors import UserError  # noqa: E402
from runtime_py.commands.common import positive_int  # noqa: E402
from runtime_py.devices import Device, find_device  # noqa: E402
from schedules import q4, twins  # noqa: E402
from schedules.gpu import FORMATS  # noqa: E402
from schedules.layout import FLOAT_FORMATS, pack_rows  # noqa: E402
from targets import Target, find_target  # noqa: E402

_SHARES = (0.025, 0.1, 0.25, 0.5, 0.75, 1)  # of the experts in a union


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="opencl", metavar="NAME",
                        help="opencl, opencl:N, vulkan or vulkan:N, as 'python -m runtime_py devices' lists them")
    parser.add_argument("--format", default="q4f32_1", choices=FORMATS, help="of the weights (default: q4f32_1)")
    parser.add_argument("--experts", type=positive_int, default=40, metavar="N", help="default: 40")
    parser.add_argument("--hidden", type=positive_int, default=1024, metavar="N", help="default: 1024")
    parser.add_argument("--expert-size", type=positive_int, default=128, metavar="N", help="default: 128")
    parser.add_argument("--tokens", type=positive_int, nargs="+", default=[1], metavar="N", help="default: 1")
    parser.add_argument("--rounds", type=positive_int, default=40, metavar="N", help="default: 40")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)
    try:
        device = find_device(args.device)
        if not device.copies:
            raise UserError(f"--device {args.device}: expected opencl, opencl:N, vulkan or vulkan:N")
        ffn = FeedForward(device, args.experts, args.hidden, args.expert_size, args.format)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sizes = sorted({max(1, round(args.experts * share)) for share in _SHARES})
    results = []
    for tokens in args.tokens:
        calls = {size: ffn.call(tokens, size) for size in sizes}
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(args.rounds + 1):
            for size, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[size].append(time.perf_counter() - start)
        best = {size: min(values[1:]) for size, values in seconds.items()}  # the first round compiles
        results += [{"tokens": tokens, "union": size, "milliseconds": 1e3 * best[size],
                     "median": 1e3 * statistics.median(seconds[size][1:]),
                     "of_ideal": best[size] * args.experts / (size * best[args.experts])} for size in sizes]
    if args.json:
        print(json.dumps({"device": device.product, "format": args.format, "results": results}))
    else:
        print(f"{device.product}, {args.format}, {args.experts} experts of {args.hidden} x {args.expert_size}")
        for row in results:
            print(f"{row['tokens']:3} tokens {row['union']:4} experts {row['milliseconds']:8.3f} ms "
                  f"({row['median']:.3f})  {row['of_ideal']:.2f} of ideal")
    return 0


class FeedForward:
    """Both projections of a layer with random weights, compiled as for the target named like the device's kind. Raises
    UserError where this machine lacks what that takes."""

    def __init__(self, device: Device, experts: int, hidden: int, size: int, weight_format: str) -> None:
        self.device, self.experts, self.hidden, self.size = device, experts, hidden, size
        self.rng = np.random.default_rng(0)
        target = find_target(device.kind)
        target.check_tools()
        tiles = target.tiles
        self.up = self._kernel(target, target.kernels.sparse_up(tiles, experts, hidden, size, weight_format))
        self.down = self._kernel(target, target.kernels.sparse_down(tiles, experts, hidden, size, weight_format, 1.0))
        self.up_weight = self._weight(weight_format, tiles.expert_tile(size), experts, size, hidden)
        self.down_weight = self._weight(weight_format, tiles.output_tile, experts, hidden, size)

    def call(self, tokens: int, union: int) -> Callable[[], None]:
        """Runs the layer for ``tokens`` tokens that use the same ``union`` experts, and waits for it."""
        scores = np.zeros((tokens, self.experts), "float32")
        scores[:, self.rng.permutation(self.experts)[:union]] = 1
        used = [self.device.tensor(array) for array in twins.union(scores)]
        x = self.device.tensor(self.rng.standard_normal((tokens, self.hidden)).astype("float32"))
        scores = self.device.tensor(scores)
        act = self.device.zeros((self.experts, tokens, self.size), "float32")
        y = self.device.zeros((tokens, self.hidden), "float32")

        def run() -> None:
            self.up(x, scores, *used, self.up_weight, act)
            self.down(act, *used, self.down_weight, x, y)
            self.device.host(used[1])  # a single number, behind the kernels in the queue

        return run

    @staticmethod
    def _kernel(target: Target, func: tvm.tirx.PrimFunc) -> Callable:
        module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        with tempfile.TemporaryDirectory(prefix="ffn-by-union-") as folder:
            library = str(Path(folder) / "kernel.so")
            target.export(tvm.compile(module, target.tvm_target), library, target.forms[0].link)
            return tvm.runtime.load_module(library)["main"]

    def _weight(self, weight_format: str, tile: int, *shape: int) -> Any:
        rows = self.rng.standard_normal(shape).astype("float32")
        return self.device.tensor(pack_rows(rows, tile, weight_format) if weight_format in FLOAT_FORMATS
                                  else q4.store(rows, weight_format))


if __name__ == "__main__":
    sys.exit(main())
