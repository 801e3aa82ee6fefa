"""Heat maps: a readable picture, a page without dependencies, early refusals."""

import base64
import re
import sys

import numpy as np
import pytest

from blockffn_mlc.errors import UserError
from runtime_py.plot import check_plot, plot_activity

ACTIVE = np.random.default_rng(0).random((3, 10, 7)) < 0.3


def test_png(tmp_path):
    from matplotlib import image
    plot_activity(tmp_path / "a.png", ACTIVE, [str(i) for i in range(10)], "title")
    picture = image.imread(tmp_path / "a.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 300 and picture.std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_html_shows_every_count_escapes_tokens_and_loads_nothing(tmp_path):
    tokens = ["<script>alert(1)</script>", '"', "\u4e16", *"abcdefg"]
    plot_activity(tmp_path / "a.html", ACTIVE, tokens, "a & b")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "a &amp; b" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    cells = [int(count) for count in re.findall(r"<td[^>]*>(\d+)</td>", page)]
    assert cells == ACTIVE.sum(-1).T.ravel().tolist()


def test_the_bitmap_of_the_page_holds_every_expert(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    plot_activity(tmp_path / "a.html", ACTIVE, ["x"] * 10, "t")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    (tmp_path / "a.bmp").write_bytes(base64.b64decode(re.search(r"data:image/bmp;base64,([^\"]+)", page)[1]))
    pixels = np.asarray(pil.open(tmp_path / "a.bmp").convert("L"))
    assert ((pixels < 128) == ACTIVE.transpose(0, 2, 1).reshape(21, 10)[::-1]).all()


def test_unknown_formats_and_a_missing_matplotlib_are_refused(monkeypatch):
    with pytest.raises(UserError, match=".png or .html"):
        check_plot("a.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        check_plot("a.png")
    check_plot("a.html")


def test_a_missing_folder_is_named_before_the_work(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        check_plot(tmp_path / "no" / "a.html")


def test_titles_are_no_formulas(tmp_path):
    plot_activity(tmp_path / "a.png", ACTIVE, ["x"] * 10, "a$_$b")
    assert (tmp_path / "a.png").is_file()
