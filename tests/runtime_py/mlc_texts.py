"""Run an artifact as MLC's engine does, under whatever TVM is installed where this runs: greedy tokens as JSON.

    python mlc_texts.py ARTIFACT ENGINE PROMPT
"""

import importlib.util
import json
import sys
from pathlib import Path

import tvm

folder, source, prompt = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
spec = importlib.util.spec_from_file_location("engine", source)  # alone: the package needs more than TVM
engine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(engine)
(library,) = (folder / "lib").glob("*.so")
mlc = engine.EmulatedEngine(engine.tvm_ffi.load_module(str(library)), folder)
mlc.create_cache(2, 128)
mlc.add(0)
tokens = [int(mlc.prefill(0, prompt).argmax())]
while len(tokens) < 24:
    tokens.append(int(mlc.decode(0, tokens[-1]).argmax()))
mlc.pop(0, 4)
verified = mlc.verify(0, tokens[-5:-1], [-1, 0, 1, 2]).argmax(axis=1).tolist()
mlc.commit(0, [0, 1, 2, 3])
print(json.dumps({"version": tvm.__version__, "tokens": tokens, "verified": verified}))
