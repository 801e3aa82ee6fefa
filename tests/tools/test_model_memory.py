"""What docs/mlc.md says of memory, and of what is not there yet, is so."""

import re
from pathlib import Path

import pytest
from building import build

from blockffn_mlc.config import PRESETS
from tools.model_memory import HEADER, QUANTIZATIONS, row

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "mlc.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("model", "quantization"), [("small", "q4f32_1"), ("3b", "q4f16_1")])
def test_rows_of_the_table_are_computed(model, quantization):
    assert f"\n{row(model, quantization)}\n" in TEXT


def test_the_table_has_every_shape_and_format():
    table = TEXT.partition("\n".join(HEADER) + "\n")[2].partition("\n\n")[0].splitlines()
    assert [re.match(r"\| (\w+) \| `(\w+)` \|", line).groups() for line in table] == [
        (model, quantization) for model in PRESETS for quantization in QUANTIZATIONS]


def test_the_first_step_of_the_guide(tmp_path):
    line = "--target android --quantization q4f16_1 --package"
    assert f"python build.py --model PATH/TO/BlockFFN-3B-SFT {line} -o dist/chat" in TEXT
    assert build(*line.split(), "-o", tmp_path / "out", "--dry-run").returncode == 0
