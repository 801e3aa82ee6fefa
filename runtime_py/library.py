"""The compiled model library behind numpy arrays: ``forward``, ``commit``, ``draft`` and cache tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from blockffn_mlc.errors import UserError, first_line

from .accept_kernel import AcceptKernel
from .artifact import CHAT_CONFIG, MASK_BITS, Artifact
from .devices import Device, Inputs, Logits, Row, device_facts, kind_of_target
from .host import check_host
from .jsonfile import required
from .tvm_runtime import aligned_zeros, installed_version
from .weights import check_weights

_NAIVE_ALLOCATOR = 1  # the pooled one keeps a buffer for every size it ever saw
_LOG_LINES = 20  # of what a device's compiler says
_FUNCTIONS = ("_metadata", "commit", "forward", "forward_dense")


class Drafted(NamedTuple):
    """What the draft model computes for n rows, m of them with a head: the ``tokens`` int32 [m, K] that are most likely
    to come next, in falling order, their ``log_probs`` float32 [m, K] among those it knows, its ``logits`` float32
    [m, V'] and ``hidden`` float32 [n, H], which stands for the model's own state behind each row's token."""

    tokens: np.ndarray
    log_probs: np.ndarray
    logits: np.ndarray | Logits
    hidden: np.ndarray


class Library:
    """Loads an artifact's library and weights on a device. See docs/artifact.md for the functions' arguments. One pass
    at a time: neither the virtual machine nor the kept inputs can be shared by threads. ``accept``: the kernel that
    chooses tokens; None where logits are in a device's memory."""

    def __init__(self, artifact: Artifact, device: Device) -> None:
        """Raises UserError when the library was made for another machine, device or TVM, is damaged, or does not
        match the weights; and when these do not fit into the device's memory."""
        _check_compatible(artifact, device)
        self._device, self._item = device, device.item
        try:
            self._library = device.library(artifact.library)
            self._vm = self._library.module["vm_load_executable"]()
            self._vm["vm_initialization"](*(number for codes in device.codes for number in (*codes, _NAIVE_ALLOCATOR)))
            metadata, self._commit, *self._forwards = (device.function(self._vm, name) for name in _FUNCTIONS)
            self._draft = device.function(self._vm, "draft") if artifact.draft else None
            self._argmax = self._vm["argmax"] if device.copies and device.kind != "cpu" else None
        except (RuntimeError, AttributeError) as error:
            if not device.here:  # it may be the connection
                raise
            raise UserError(f"{artifact.library}: not a usable model library ({_first_line(error)}); "
                            "rebuild the artifact with build.py") from None
        self._artifact = artifact
        self.metadata: dict[str, Any] = json.loads(str(metadata()))
        _check_limits(artifact, self.metadata)
        params = required(self.metadata, "params", list, artifact.library)
        weights = check_weights(artifact.weights, params, artifact.path)
        _check_device(artifact, device, max((weight.nbytes for weight in weights), default=0))
        self._check_kernels()
        self._params = device.weights(dict(zip((param["name"] for param in params), weights)))
        # The inputs of ``step``, kept and written in place: making five tensors per token is slow.
        self._step = device.inputs(((1,), (1,), (1,), (1, 2), (1,)))
        self._step_numbers = [memoryview(array) for array in self._step.arrays[:3]]
        self._kept: dict[tuple[tuple[int, ...], ...], Inputs] = {}  # see _copies
        self.accept = None if device.copies else AcceptKernel(self.kernel("accept"), device)
        if artifact.draft:
            self._draft_states = aligned_zeros((artifact.prefill_chunk_size, artifact.config.hidden_size), np.float32)

    @property
    def weights(self) -> dict[str, Any]:
        """The weights by name, as the kernels take them."""
        return {param["name"]: tensor for param, tensor in zip(self.metadata["params"], self._params)}

    def has(self, name: str) -> bool:
        """Whether the library exports a function of this name."""
        try:
            return self._vm[name] is not None
        except AttributeError:
            return False

    def kernel(self, name: str) -> Any:
        """One kernel as a function of tensors and integers. Raises UserError when the library has none so named."""
        with suppress(AttributeError):
            if (kernel := self._library.module.get_function(name, query_imports=True)) is not None:
                return kernel
        raise UserError(f"{self._artifact.library}: has no kernel {name!r}; rebuild the artifact with build.py")

    def _check_kernels(self) -> None:
        """Let the kernels of runtimes that can tell say what they need and the device lacks."""
        for module in self._library.module.imports:
            try:
                module.get_function("check_device", query_imports=True)(self._device.index)
            except AttributeError:
                continue
            except RuntimeError as error:
                raise UserError(f"{self._artifact.path}: device {self._device.name!r}: {_first_line(error)}; rebuild "
                                "with another --target or --quantization, or choose another --device") from None

    def new_caches(self) -> Any:
        """Zeroed cache tensors, one per layer, opaque to the caller."""
        artifact = self._artifact
        return self._device.objects([self._device.zeros(artifact.cache_shape, artifact.cache_dtype)
                                     for _ in range(artifact.config.num_hidden_layers)])

    def new_draft_caches(self) -> Any:
        """As ``new_caches``, of the draft model."""
        draft = self._artifact.draft
        return self._device.objects([self._device.zeros(draft.cache_shape, draft.cache_dtype)
                                     for _ in range(draft.layers)])

    def forward(self, ids: np.ndarray, positions: np.ndarray, visible: np.ndarray, ancestors: np.ndarray,
                rows: np.ndarray, past: int, caches: Any, *,
                dense: bool = False) -> tuple[np.ndarray | Logits, Sequence[np.ndarray], States | None]:
        """int32 [n], [n], [n], [n, 2], [m] -> logits float32 [m, V], scores L x float32 [n, E], hidden float32 [n, H]
        (None without a draft model); writes caches. ``dense`` computes every expert, to compare with: the same numbers,
        more work."""
        tensors = self._copies(ids, positions, visible, ancestors, rows)
        result = self._call(self._forwards[dense], *tensors, self._device.shape(past), caches, self._params)
        scores = _Arrays(self._item(result, 1), self._artifact.config.num_hidden_layers, self._device)
        return self._logits(self._item(result, 0)), scores, self._hidden(result)

    def step(self, token: int, past: int, caches: Any, *,
             dense: bool = False) -> tuple[np.ndarray | Row, States | None]:
        """``forward`` of one token behind ``past`` others -> logits float32 [V], hidden float32 [1, H] (None without a
        draft model); writes caches."""
        ids, positions, visible = self._step_numbers
        ids[0], positions[0], visible[0] = token, past, past + 1
        self._step.send()
        result = self._call(self._forwards[dense], *self._step.tensors, self._device.shape(past), caches, self._params)
        return self._logits(self._item(result, 0), 0), self._hidden(result)

    def commit(self, idx: np.ndarray, past: int, caches: Any) -> None:
        """Move cache row past + idx[i] to past + i in every layer; idx int32 [k], strictly ascending."""
        self._call(self._commit, *self._copies(idx), self._device.shape(past), caches)

    def wait(self) -> None:
        """Until the device is done with every pass before: without it a clock reads when they were launched."""
        self._device.wait()

    def draft(self, ids: np.ndarray, hidden: np.ndarray, positions: np.ndarray, visible: np.ndarray,
              ancestors: np.ndarray, rows: np.ndarray, past: int, offset: int, caches: Any) -> Drafted:
        """Run the draft model on pairs: token ``ids[i]`` and ``hidden[i]``, the state before it. Arguments as for
        ``forward``, hidden float32 [n, H]; row i is written to slot past + offset + i of ``caches``
        (``new_draft_caches``), ancestor bit b is slot past + b."""
        states = self._draft_states[:len(hidden)]
        states[...] = hidden
        ids, *others = self._copies(ids, positions, visible, ancestors, rows)
        result = self._call(self._draft, ids, self._device.tensor(states), *others, self._device.shape(past),
                            self._device.shape(offset), caches, self._params)
        tokens, log_probs, logits, hidden = (self._item(result, index) for index in range(4))
        return Drafted(*map(self._device.host, (tokens, log_probs)), self._logits(logits), self._device.host(hidden))

    def _logits(self, tensor: Any, row: int | None = None) -> np.ndarray | Logits | Row:
        logits = self._device.logits(tensor, self._argmax)
        if row is not None:
            logits = logits[row]
        if self.accept:
            self.accept.known = logits, tensor
        return logits

    def _hidden(self, result: Any) -> States | None:
        return States(self._item(result, 2), self._device) if self._draft else None

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (RuntimeError, TypeError, ValueError) as error:
            if not self._device.here:
                raise
            if "ErrorContext(" not in str(error):  # how the library's own checks of shapes and dtypes sign
                log = "".join(f"\n{line}" for line in str(error).strip().splitlines()[1:_LOG_LINES])
                raise UserError(f"{self._artifact.library}: failed while running "
                                f"({_first_line(error)}){log}") from error
            raise UserError(f"{self._artifact.library}: refused its arguments ({_first_line(error)}); library and "
                            f"{CHAT_CONFIG} come from different builds: rebuild the artifact") from error

    def _copies(self, *arrays: np.ndarray) -> list[Any]:
        """Tensors of int32 arrays, copied to memory that is aligned as compiled kernels expect. For a tree's worth of
        numbers it is kept and written again by the next call with such shapes: making tensors is slow."""
        shapes = tuple(array.shape for array in arrays)
        inputs = self._kept.get(shapes) or self._device.inputs(shapes)
        if all(shape[0] <= MASK_BITS for shape in shapes):
            self._kept[shapes] = inputs
        for kept, array in zip(inputs.arrays, arrays):
            kept[...] = array
        inputs.send()
        return inputs.tensors


class _Arrays(Sequence):
    """``count`` tensors as numpy arrays, converted when they are looked at: decoding does not look at router scores."""

    def __init__(self, tensors: Any, count: int, device: Device) -> None:
        self._tensors, self._count, self._device = tensors, count, device

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        return self._device.host(self._device.item(self._tensors, range(self._count)[index]))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(self._count))


class States:
    """The model's states float32 [n, H] behind a pass; an array to numpy, converted when it is looked at: only a draft
    model looks, and only when it drafts. ``rows``: which of the tensor's rows (None: all)."""

    def __init__(self, tensor: Any, device: Device, rows: Sequence[int] | None = None) -> None:
        self._tensor, self._device, self._rows = tensor, device, rows

    def __len__(self) -> int:
        return self._tensor.shape[0] if self._rows is None else len(self._rows)

    def __getitem__(self, rows: Sequence[int]) -> States:
        """Some of the rows, not looked at either."""
        return States(self._tensor, self._device, rows if self._rows is None else [self._rows[row] for row in rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self._device.host(self._tensor)
        return (array if self._rows is None else array[self._rows]).astype(dtype or np.float32, copy=bool(copy))


def _check_compatible(artifact: Artifact, device: Device) -> None:
    rebuild = f"rebuild it here with: python build.py --target {device.kind} --model MODEL"
    if kind_of_target(artifact.target) != device.kind:
        raise UserError(f"{artifact.path}: built for target {artifact.target!r}, which device {device.name!r} cannot "
                        f"run; {rebuild}")
    if not device.here:
        return
    check_host(artifact.host, artifact.path, device.kind)
    installed = installed_version()
    if installed.split(".")[:2] != artifact.tvm_version.split(".")[:2]:
        raise UserError(f"{artifact.path}: compiled by TVM {artifact.tvm_version}, installed is TVM {installed}; "
                        f"install the former, or {rebuild}")


def _check_device(artifact: Artifact, device: Device, largest_weight: int) -> None:
    """Hold what kernels were built for against what the device has, where its runtime tells. Of buffers the largest
    weight counts: the artifact's own limit is only an upper bound of them."""
    built_for = artifact.chat_config["blockffn"].get("device")
    if not isinstance(built_for, dict) or not device.here:
        return
    facts = device_facts(device.name)
    for field, needed, fact in (("fp16", built_for.get("fp16"), "fp16"),
                                ("work_group", built_for.get("work_group"), "max_work_group_size"),
                                ("threadgroup_bytes", built_for.get("threadgroup_bytes"), "local_memory_bytes"),
                                ("buffer_bytes", largest_weight, "max_allocation_bytes")):
        found = facts.get(fact)
        if isinstance(needed, int) and found is not None and found < needed:
            remedy = ("rebuild with --quantization q0f32" if field == "fp16" else
                      "rebuild for a --target with smaller limits (build.py --list-targets)")
            raise UserError(f"{artifact.path}: device {device.name!r}: field {field!r}: the artifact needs {needed}, "
                            f"the device has {found}; {remedy} or choose another --device")


def _check_limits(artifact: Artifact, metadata: dict[str, Any]) -> None:
    for name in ("context_window_size", "prefill_chunk_size"):
        compiled = required(metadata, name, int, artifact.library)
        if compiled != getattr(artifact, name):
            raise UserError(f"{artifact.path / CHAT_CONFIG}: field {name!r}: the model library was compiled for "
                            f"{compiled}, found {getattr(artifact, name)}; rebuild the artifact")
    described, compiled = artifact.chat_config["blockffn"].get("draft"), metadata.get("draft")
    if described != compiled:
        raise UserError(f"{artifact.path / CHAT_CONFIG}: field 'draft': the model library was compiled with "
                        f"{compiled}, found {described}; rebuild the artifact")


def _first_line(error: Exception) -> str:
    return first_line(error)[:200]
