"""The script in artifacts for phones, against an RPC server of this machine's devices."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import GQA
from tokenizers import Tokenizer, models, pre_tokenizers

from runtime_py import Engine
from targets.android import FILES

ROOT, HERE = Path(__file__).resolve().parents[3], Path(__file__).resolve().parent
SCRIPT = "run_on_phone.py"


@pytest.fixture(scope="module")
def folder(built, each_device, tmp_path_factory):
    """A model for the device as one for phones would be, with a tokenizer of a word per token."""
    folder = tmp_path_factory.mktemp("phone") / "model"
    shutil.copytree(built(GQA, "q0f32", each_device.kind), folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(GQA.vocab_size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / SCRIPT).write_text(FILES[SCRIPT])
    return folder


def test_the_text_is_the_engines(folder, each_device):
    prompt = " ".join(f"w{3 + 7 * i % 90}" for i in range(20))
    engine = Engine.load(folder, device=each_device.name)
    ids = engine.encode(prompt)
    generation = engine.generate(ids, 6, draft="none")
    expected = [token.id for token in generation]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, HERE / "rpc_server.py", each_device.kind], stdout=subprocess.PIPE,
                          env=environment, text=True) as server:
        try:
            done = subprocess.run([sys.executable, SCRIPT, folder, "--port", server.stdout.readline().strip(),
                                   "--prompt", prompt, "--max-tokens", "6"], cwd=folder, capture_output=True, text=True,
                                  timeout=120)
        finally:
            server.kill()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"w{token}" for token in [*ids[1:], *expected]] and len(expected) == 6
    assert "6 tokens in" in done.stderr
