"""A device of one of TVM's own servers, as a phone's: what runs there is called from here, and timed there."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..devices import Logits
from ..devices.device import Accelerator, Cpu, Lap

_SESSION_CODES = 128  # a connection's devices have codes beyond those of its number times this
_TIMED = "blockffn_timed"
# One repeat of one call: number, repeat, min_repeat_ms, zero-time limit, cooldown ms and repeats, cache flush, before.
_ONCE = 1, 1, 0, 100, 0, 1, 0, ""


class RemoteDevice(Accelerator):
    """Library and weights are those at ``library`` and in ``folder`` there; the weights' index is among them. Raises
    RuntimeError, also for a connection that breaks, and AttributeError for a function that the server lacks."""

    here = False
    launches = None

    def __init__(self, session: Any, kind: str, index: int, library: str, folder: str) -> None:
        super().__init__(kind, index)
        self._session, self._path, self._folder = session, library, folder
        self._code = int(self._device.dlpack_device_type())
        number = self._tvm.get_global_func("rpc.SessTableIndex")(session)
        self._device = self._tvm.device(self._code + (number + 1) * _SESSION_CODES, index)
        self._names = map("blockffn.{}".format, itertools.count())
        self._lap: Lap | None = None

    @property
    def codes(self) -> list[tuple[int, int]]:
        own = self._code, self.index
        return [own] if self.kind == "cpu" else [own, *Cpu().codes]

    def attribute(self, kind: int) -> Any:
        ask = self._tvm.get_global_func("runtime.GetDeviceAttr")
        return ask(int(self._device.dlpack_device_type()), self.index, kind)

    def library(self, path: Path) -> Any:
        return SimpleNamespace(module=self._tvm.get_global_func("rpc.LoadRemoteModule")(self._session, self._path))

    def function(self, machine: Any, name: str) -> Any:
        """Within ``timed`` every call is made a second time for TVM's evaluator, which returns nothing but the time."""
        function = machine[name]

        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            if self._lap is not None:
                if name == "commit":  # other rows would move the second time: each stays where it is, as much work
                    arguments = self.tensor(np.arange(*arguments[0].shape, dtype=np.int32)), *arguments[1:]
                self._lap.seconds += self._seconds(machine, name, arguments)
            return result
        return call

    @contextmanager
    def timed(self) -> Iterator[Lap]:
        """The seconds, by the clock there and until the device is done, of the library's functions alone: neither the
        network's nor this computer's part."""
        self._lap = Lap()
        try:
            yield self._lap
        finally:
            self._lap = None

    def weights(self, arrays: dict[str, np.ndarray]) -> Any:
        self._session["vm.builtin.tensor_cache.load"](self._folder, *self.codes[0])
        return self._named(arrays)

    def objects(self, tensors: Sequence[Any]) -> Any:
        names = [next(self._names) for _ in tensors]
        for name, tensor in zip(names, tensors):
            self._session["vm.builtin.tensor_cache.update"](name, tensor, True)
        found = self._named(names)
        for name in names:
            self._session["vm.builtin.tensor_cache.remove"](name)
        return found

    def shape(self, number: int) -> Any:
        return self._session["ffi.Shape"](number)

    def item(self, result: Any, index: int) -> Any:
        return self._session["ffi.ArrayGetItem"](result, index)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Of whatever is there: nobody reads a cache's rows before they are written, and sending zeros takes long."""
        return self._empty(shape, dtype)

    def logits(self, tensor: Any, argmax: Any) -> np.ndarray | Logits:
        return self.host(tensor) if argmax is None else super().logits(tensor, argmax)

    def _named(self, names: Sequence[str] | dict[str, Any]) -> Any:
        return self._session["vm.builtin.param_array_from_cache_by_name_unpacked"](*names)

    def _seconds(self, machine: Any, name: str, arguments: Sequence[Any]) -> float:
        """Of a call of a virtual machine's function; another before warms up."""
        machine["save_function"](name, _TIMED, False, *arguments)
        evaluator = self._tvm.get_global_func("runtime.RPCTimeEvaluator")
        code = int(self._device.dlpack_device_type())
        return struct.unpack("@d", bytes(evaluator(machine, _TIMED, code, self.index, *_ONCE)()))[0]

    def _try(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)
