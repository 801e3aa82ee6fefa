"""Plot the training of the demo model beside the run without sparsity losses.

    python tools/demo_plot.py blockffn_mlc/demo/loss.csv build/demo/dense/loss.csv blockffn_mlc/demo/loss.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("demo", "dense", "output"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    figure, (loss, sparsity) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, path in (("demo", args.demo), ("without sparsity losses", args.dense)):
        history = read(path)
        loss.plot(history["step"], history["lm_loss"], label=name)
        sparsity.plot(history["step"], history["tls"], label=f"TLS, {name}")
    history = read(args.demo)
    sparsity.plot(history["step"], history["cls_8"], label="CLS$_8$, demo")
    loss.set(xlabel="step", ylabel="language-model loss (nats per token)", ylim=(None, 6))
    sparsity.set(xlabel="step", ylabel="share of inactive experts", ylim=(0, 1))
    for axes in (loss, sparsity):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(args.output, dpi=90)


def read(path: Path) -> dict[str, list[float]]:
    """Columns of a loss history by name."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


if __name__ == "__main__":
    main()
