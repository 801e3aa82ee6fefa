"""A device, and arrays on it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_void_p
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..bench.machine import clock_mhz, processor
from ..stats import Stopwatch
from ..tvm_runtime import aligned_zeros, load_runtime, model_library
from ..weights import ALIGNMENT
from .logits import Logits
from .native import RUNTIMES, load_native
from .provided import PROVIDED, load_provided

_KIND_OF_TARGET = {"cpu": "cpu", "opencl": "opencl", "android": "opencl", "vulkan": "vulkan", "cuda": "cuda",
                   "metal": "metal", "iphone": "metal"}  # by the family's name
KINDS = (*RUNTIMES, *PROVIDED)
_EXISTS, _NAME, _CLOCK = 0, 5, 6  # of TVM's DeviceAttrKind


def load(kind: str) -> None:
    """Make TVM able to use devices of ``kind``, "cpu" or one of KINDS. Raises UserError naming what is missing."""
    if kind in RUNTIMES:
        load_native(kind)
    elif kind in PROVIDED:
        load_provided(kind)
    else:
        load_runtime()


def find_device(name: str) -> Device:
    """The device for "cpu", KIND or KIND:N, with one of KINDS. Raises UserError for others and where there is none."""
    match = re.fullmatch(rf"({'|'.join(KINDS)})(?::(\d+))?", name)
    if name == "cpu":
        return Cpu()
    if match is None:
        expected = ", ".join(f"{kind}, {kind}:N" for kind in KINDS)
        raise UserError(f"device {name!r}: expected cpu, {expected}; "
                        "'python -m runtime_py devices' lists what is here")
    load(match[1])
    device = Accelerator(match[1], int(match[2] or 0))
    if not device.exists:
        raise UserError(f"device {name!r}: there is none here; 'python -m runtime_py devices' lists what is")
    return device


def kind_of_target(target: str) -> str | None:
    """The kind of device that artifacts for ``target`` run on; None for a target that is not known here."""
    return _KIND_OF_TARGET.get(target.partition(":")[0])


class Inputs:
    """Arrays to write, zero at first, and the tensors that kernels read; ``send`` makes these hold what the arrays
    hold."""

    def __init__(self, arrays: list[np.ndarray], tensors: list[Any]) -> None:
        self.arrays, self.tensors = arrays, tensors

    def send(self) -> None:
        """Nothing to do: both share their memory."""


@dataclass
class Lap:
    """What something took; known behind it."""

    seconds: float = 0.0


class Device(ABC):
    """``kind`` is "cpu" or one of KINDS, ``index`` counts devices of that kind. ``copies``: tensors are copies of
    arrays, in memory of the device's own. ``here``: it is one of this machine."""

    copies: bool
    here = True

    def __init__(self, kind: str, index: int = 0) -> None:
        self.kind, self.index = kind, index
        self._tvm = load_runtime()
        self._device = self._tvm.device(kind, index)

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.index}"

    @property
    def codes(self) -> list[tuple[int, int]]:
        """DLPack's numbers of this device and, where that is another, of the one that the host's code runs on: what
        TVM's virtual machine is initialised with."""
        return [(int(self._device.dlpack_device_type()), self.index)]

    @property
    def exists(self) -> bool:
        return bool(self.attribute(_EXISTS))

    @property
    def product(self) -> str:
        """The device's own name."""
        return str(self.attribute(_NAME))

    @property
    def clock_mhz(self) -> float | None:
        """The most that the device's clock does; None where it does not tell."""
        kilohertz = self.attribute(_CLOCK)
        return kilohertz / 1e3 if kilohertz else None

    def attribute(self, kind: int) -> Any:
        """A fact by its number in TVM's DeviceAttrKind; None where the device does not tell."""
        return self._tvm.get_global_func("runtime.GetDeviceAttr")(*self.codes[0], kind)

    @property
    def launches(self) -> int | None:
        """Kernels launched on devices of this kind so far in this process; None where the runtime does not count."""
        count = self._tvm.get_global_func(f"blockffn.{self.kind}.launches", allow_missing=True)
        return None if count is None else count()

    def library(self, path: Path) -> Any:
        """The library at ``path``: its attribute ``module`` is TVM's, as long as it is kept. Raises what TVM raises."""
        return model_library(path)

    def function(self, machine: Any, name: str) -> Any:
        """A function of TVM's virtual machine."""
        return machine[name]

    @contextmanager
    def timed(self) -> Iterator[Lap]:
        """The seconds of what is done meanwhile."""
        lap, clock = Lap(), Stopwatch()
        yield lap
        lap.seconds = clock.seconds

    def weights(self, arrays: dict[str, np.ndarray]) -> Any:
        """``objects`` that hold the weights."""
        return self.objects([self.tensor(array) for array in arrays.values()])

    def objects(self, tensors: Sequence[Any]) -> Any:
        """Tensors as one argument."""
        return self._tvm.convert(tensors)

    def shape(self, number: int) -> Any:
        """A number as an argument of TVM's virtual machine."""
        return self._tvm.Shape((number,))

    @cached_property
    def item(self) -> Any:
        """item(result, index): of what a function returns."""
        return self._tvm.get_global_func("ffi.ArrayGetItem")

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A tensor of zeros."""
        return self.tensor(aligned_zeros(shape, dtype))

    @abstractmethod
    def tensor(self, array: np.ndarray) -> Any:
        """A tensor that holds ``array``; on the CPU it is the very memory, which must be aligned for kernels."""

    @abstractmethod
    def host(self, tensor: Any) -> np.ndarray:
        """What a tensor holds, once everything that was launched before is done; on the CPU the very memory."""

    @abstractmethod
    def wait(self) -> None:
        """Until everything that was launched before is done; on the CPU it always is."""

    @abstractmethod
    def logits(self, tensor: Any, argmax: Any) -> np.ndarray | Logits:
        """Logits float32 [m, V] to choose tokens from: an array on the CPU; elsewhere they stay where they are.
        ``argmax``: see ``Logits``."""

    @abstractmethod
    def inputs(self, shapes: tuple[tuple[int, ...], ...], dtype: str = "int32") -> Inputs:
        """Arrays of ``shapes`` that can be written and sent again and again."""


class Cpu(Device):
    """The processor: tensors and arrays share memory."""

    copies = False

    def __init__(self) -> None:
        super().__init__("cpu")

    @property
    def name(self) -> str:
        return "cpu"

    @property
    def product(self) -> str:
        return processor()

    @property
    def clock_mhz(self) -> float | None:
        """What the system says of the cores' clocks now, their mean."""
        return clock_mhz()

    def tensor(self, array: np.ndarray) -> Any:
        return self._tvm.from_dlpack(array, require_alignment=ALIGNMENT, require_contiguous=True)

    def host(self, tensor: Any) -> np.ndarray:
        return np.from_dlpack(tensor)

    def wait(self) -> None:
        pass

    def logits(self, tensor: Any, argmax: Any) -> np.ndarray:
        return np.from_dlpack(tensor)

    def inputs(self, shapes: tuple[tuple[int, ...], ...], dtype: str = "int32") -> Inputs:
        arrays = [aligned_zeros(shape, dtype) for shape in shapes]
        return Inputs(arrays, [self.tensor(array) for array in arrays])


class Accelerator(Device):
    """A device with memory of its own. Work is done in order; only ``host`` and ``wait`` wait for it. Raises UserError
    for what the driver refuses."""

    copies = True

    def __init__(self, kind: str, index: int = 0) -> None:
        super().__init__(kind, index)
        self._allocate, self._copy_in, self._copy_out = (
            self._tvm.get_global_func(f"runtime.TVMTensor{name}")
            for name in ("AllocWithScope", "CopyFromBytes", "CopyToBytes"))
        self._synchronize = self._tvm.get_global_func("runtime.Device_StreamSync")
        self._view = self._tvm.get_global_func("runtime.TVMTensorCreateView")

    @property
    def codes(self) -> list[tuple[int, int]]:
        return [*super().codes, *Cpu().codes]

    def tensor(self, array: np.ndarray) -> Any:
        tensor = self._empty(array.shape, array.dtype.name)
        self._send(array, tensor)
        return tensor

    def host(self, tensor: Any) -> np.ndarray:
        array = np.empty(tensor.shape, str(tensor.dtype))
        self._try(self._copy_out, tensor, array.ctypes.data_as(c_void_p), array.nbytes)
        return array

    def wait(self) -> None:
        self._try(self._synchronize, self._device, 0)

    def logits(self, tensor: Any, argmax: Any) -> Logits:
        return Logits(self, tensor, argmax)

    def row(self, tensor: Any, index: int) -> np.ndarray:
        """Row ``index`` of a tensor [m, n], alone."""
        width, dtype = tensor.shape[1], tensor.dtype
        return self.host(self._view(tensor, self._tvm.Shape((width,)), dtype, index * width * dtype.itemsize))

    def inputs(self, shapes: tuple[tuple[int, ...], ...], dtype: str = "int32") -> Inputs:
        return _Sent([np.zeros(shape, dtype) for shape in shapes],
                     [self._empty(shape, dtype) for shape in shapes], self._send)

    def attribute(self, kind: int) -> Any:
        return self._try(super().attribute, kind)

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._try(self._allocate, self._tvm.Shape(shape), self._tvm.dtype(dtype), self._device, None)

    def _send(self, array: np.ndarray, tensor: Any) -> None:
        array = np.ascontiguousarray(array)
        self._try(self._copy_in, tensor, array.ctypes.data_as(c_void_p), array.nbytes)

    def _try(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except RuntimeError as error:
            raise UserError(f"device {self.name}: {error}") from None


class _Sent(Inputs):
    """Inputs of an accelerator: the arrays are copied."""

    def __init__(self, arrays: list[np.ndarray], tensors: list[Any], send: Callable[[np.ndarray, Any], None]) -> None:
        super().__init__(arrays, tensors)
        self._send = send

    def send(self) -> None:
        for array, tensor in zip(self.arrays, self.tensors):
            self._send(array, tensor)
