#!/usr/bin/env python3
"""Generates text on a phone that runs TVM's RPC server: this computer sends tokens, the phone computes with what is in
its folder FOLDER. Needs TVM, numpy and tokenizers here; README.md has the steps before.

    python run_on_phone.py /data/local/tmp/tvm/FOLDER --prompt "In the beginning"
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import tvm
from tokenizers import Tokenizer
from tvm import relax, rpc

HERE = Path(__file__).resolve().parent
DEVICES = {"opencl": "cl", "vulkan": "vulkan"}  # TVM's names of a connection's


class Model:
    """The library and its weights on the phone, with an empty cache."""

    def __init__(self, remote, folder, chat):
        ours, sizes = chat["blockffn"], chat["model_config"]
        self.remote, self.chunk = remote, sizes["prefill_chunk_size"]
        self.device = getattr(remote, DEVICES[ours["device"]["kind"]])(0)
        self.vm = relax.VirtualMachine(remote.load_module(f"{folder}/{ours['library']}"), self.device, "naive")
        weights = [param["name"] for param in json.loads(str(self.vm["_metadata"]()))["params"]]
        kind = self.device.dlpack_device_type() % rpc.base.RPC_SESS_MASK
        remote.get_function("vm.builtin.tensor_cache.load")(folder, kind, 0)
        self.params = self.named(weights)
        caches = [f"cache.{layer}" for layer in range(sizes["num_hidden_layers"])]
        for name in caches:
            empty = tvm.runtime.tensor(np.zeros(ours["cache"]["shape"], ours["cache"]["dtype"]), self.device)
            remote.get_function("vm.builtin.tensor_cache.update")(name, empty, True)
        self.caches = self.named(caches)

    def named(self, names):
        """A list, on the phone, of tensors that it knows by name."""
        return self.remote.get_function("vm.builtin.param_array_from_cache_by_name_unpacked")(*names)

    def logits(self, ids, past):
        """Of the last of ``ids``, which follow ``past`` tokens in the cache."""
        for start in range(0, len(ids), self.chunk):
            result = self.forward(ids[start:start + self.chunk], past + start)
        return result

    def forward(self, ids, past):
        """One pass: docs/artifact.md of blockffn-mlc has the arguments."""
        steps = np.arange(len(ids))
        arrays = ids, past + steps, past + steps + 1, np.zeros((len(ids), 2)), steps[-1:]
        tensors = [tvm.runtime.tensor(np.asarray(array, "int32"), self.device) for array in arrays]
        position = self.remote.get_function("ffi.Shape")(past)
        result = self.vm["forward"](*tensors, position, self.caches, self.params)
        return self.remote.get_function("ffi.ArrayGetItem")(result, 0).numpy()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of the artifact on the phone, an absolute path")
    parser.add_argument("--prompt", default="In the beginning")
    parser.add_argument("--max-tokens", type=int, default=20)
    parser.add_argument("--host", default="127.0.0.1", help="of the server (default: this computer, by adb forward)")
    parser.add_argument("--port", type=int, default=9090, help="of the server (default: 9090)")
    args = parser.parse_args()
    chat = json.loads((HERE / "mlc-chat-config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    sizes = chat["model_config"]
    ids = [sizes["bos_token_id"], *tokenizer.encode(args.prompt, add_special_tokens=False).ids]
    begin = len(ids)
    model = Model(rpc.connect(args.host, args.port), args.folder, chat)
    started = time.perf_counter()
    while len(ids) < min(begin + args.max_tokens, sizes["context_window_size"]):
        new = ids if len(ids) == begin else ids[-1:]
        token = int(model.logits(new, len(ids) - len(new)).argmax())
        if token in np.atleast_1d(sizes["eos_token_id"]):
            break
        ids.append(token)
    seconds = time.perf_counter() - started
    print(tokenizer.decode(ids[1:]))
    print(f"{len(ids) - begin} tokens in {seconds:.1f} s, the way from and to this computer included", file=sys.stderr)


if __name__ == "__main__":
    main()
