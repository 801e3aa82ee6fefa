"""Heat maps of expert activity: a .png through matplotlib, or a self-contained .html."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from .files import check_output, replacing

FORMATS = (".png", ".html")


def check_plot(path: str | Path, formats: Sequence[str] = FORMATS) -> None:
    """Raises UserError, before work starts, for another format than ``formats``, an unwritable place, or without
    matplotlib for .png."""
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise UserError(f"{path}: plot format {suffix!r} is unknown; name a {' or '.join(formats)} file")
    check_output(path)
    if suffix == ".png":
        load_pyplot()


def plot_activity(path: str | Path, active: np.ndarray, tokens: Sequence[str], title: str) -> None:
    """Write active experts per layer and token, and below them every single expert.

    ``active`` is bool [L, T, E], ``tokens`` the T tokens' spellings.
    """
    with replacing(path) as temporary:
        if Path(path).suffix.lower() == ".png":
            _png(temporary, active, title)
        else:
            temporary.write_text(_html(active, tokens, title), encoding="utf-8")


def load_pyplot() -> Any:
    """matplotlib's pyplot, drawing to files. Raises UserError when it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib is not installed, .png needs it: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def _png(path: Path, active: np.ndarray, title: str) -> None:
    pyplot = load_pyplot()
    layers, tokens, experts = active.shape
    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(11, 8), sharex=True, height_ratios=(1, 2.5), layout="constrained")
    extent = (-0.5, tokens - 0.5)
    counts = top.imshow(active.sum(axis=-1), aspect="auto", cmap="viridis", vmin=0, interpolation="nearest",
                        origin="lower", extent=(*extent, -0.5, layers - 0.5))
    top.set(ylabel="layer")
    top.set_title(title, parse_math=False)
    top.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(counts, ax=top, label=f"active experts of {experts}", pad=0.01)
    stacked = active.transpose(0, 2, 1).reshape(layers * experts, tokens)
    bottom.imshow(stacked, aspect="auto", cmap="Greys", vmin=0, vmax=1.3, interpolation="nearest",
                  origin="lower", extent=(*extent, 0, layers * experts))
    for layer in range(1, layers):
        bottom.axhline(layer * experts, color="tab:red", linewidth=0.6)
    step = max(1, layers // 12)
    bottom.set_yticks([(layer + 0.5) * experts for layer in range(0, layers, step)], range(0, layers, step))
    bottom.set(xlabel="token", ylabel=f"layer, {experts} experts each (dark: active)")
    figure.savefig(path, format="png", dpi=130)
    pyplot.close(figure)


def _html(active: np.ndarray, tokens: Sequence[str], title: str) -> str:
    """Table of counts, each cell shaded by its share; a cell's tooltip lists the active experts."""
    layers, _, experts = active.shape
    head = "".join(f"<th>{layer}</th>" for layer in range(layers))
    rows = []
    for position, token in enumerate(tokens):
        cells = []
        for layer in range(layers):
            ids = np.flatnonzero(active[layer, position])
            share = len(ids) / experts
            names = " ".join(map(str, ids))
            cells.append(f'<td style="background:rgba(20,90,160,{share:.2f});color:{"#fff" if share > 0.5 else "#000"}"'
                         f' title="layer {layer}, experts {names}">{len(ids)}</td>')
        rows.append(f"<tr><th>{position}</th><th>{html.escape(token)}</th>{''.join(cells)}</tr>")
    return _PAGE.format(title=html.escape(title), experts=experts, head=head, rows="\n".join(rows),
                        strip=_strip(active))


def _strip(active: np.ndarray) -> str:
    """Every expert over time as an inline bitmap (BMP, one byte a pixel row-padded to four)."""
    layers, tokens, experts = active.shape
    pixels = active.transpose(0, 2, 1).reshape(layers * experts, tokens)
    padded = np.pad(pixels, ((0, 0), (0, -tokens % 4))).astype(np.uint8)
    palette = bytes((255, 255, 255, 0, 90, 40, 10, 0)) + bytes(4 * 254)
    offset = 54 + len(palette)
    header = b"BM" + np.array([offset + padded.size, 0, offset, 40, tokens, len(pixels)], "<u4").tobytes()
    header += np.array([1, 8], "<u2").tobytes() + np.array([0, padded.size, 2835, 2835, 256, 0], "<u4").tobytes()
    return base64.b64encode(header + palette + padded.tobytes()).decode()


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 13px system-ui, sans-serif; margin: 1.5em; }}
table {{ border-collapse: collapse; }}
td {{ text-align: center; min-width: 2em; }}
th {{ font-weight: normal; text-align: right; padding: 0 .5em; white-space: pre; }}
thead th {{ text-align: center; position: sticky; top: 0; background: #fff; }}
img {{ image-rendering: pixelated; width: 100%; border: 1px solid #ccc; }}
</style></head><body>
<h1>{title}</h1>
<h2>Experts over tokens</h2>
<p>Left to right: tokens. Bottom to top: layers from 0 on, {experts} experts each. Dark: active.</p>
<img alt="activity of every expert" src="data:image/bmp;base64,{strip}">
<h2>Active experts of {experts}, per token and layer</h2>
<table><thead><tr><th></th><th>token</th>{head}</tr></thead><tbody>
{rows}
</tbody></table>
</body></html>
"""
