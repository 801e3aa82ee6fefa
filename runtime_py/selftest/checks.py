"""Runs the kernels of an artifact, one after the other, and reports how close each is to its twin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blockffn_mlc.errors import UserError, first_line

from ..bench.calls import Description, Factory
from ..devices import Device
from ..engine import Engine
from ..weights import check_digests
from .bounds import Error, Mismatch, Written
from .cases import CASES, Case
from .memory import Guarded
from .subject import Subject

# One for every form that a kernel has for some number of tokens; those that the artifact's chunks allow are used.
TOKENS = (1, 3, 8, 14, 33, 65)


@dataclass(frozen=True)
class Result:
    """One kernel. ``factory``: the function that made it; ``weights``: those it was tried with; ``calls``: how many;
    ``nmse``, ``bound``: of the output that is closest to its bound; ``error``: the largest error of an element over
    what is allowed for it. ``launches``: on the device, None where they cannot be counted. ``problem``: None, or
    what is wrong."""

    kernel: str
    factory: str
    format: str
    weights: tuple[str, ...]
    calls: int
    nmse: float | None
    bound: float | None
    error: float | None
    launches: int | None
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_kernels(engine: Engine) -> Iterator[Result]:
    """Every kernel of the engine's library. Raises UserError when the artifact does not describe them, or its weights
    are not those that were built."""
    artifact = engine.artifact
    check_digests(artifact.path)
    description = Description.load(artifact.path)
    tokens = [n for n in TOKENS if n <= artifact.prefill_chunk_size]
    for seed, (name, factory) in enumerate(description.factories.items()):
        subject = Subject(factory.arguments, factory.weights, artifact.weights, seed)
        yield check_kernel(name, factory, subject, engine, tokens)


def report(engine: Engine) -> dict[str, Any]:
    """The device's name, its own (``product``), and every kernel's result, for JSON."""
    return {"device": engine.device.name, "product": engine.device.product,
            "results": [result.to_dict() for result in check_kernels(engine)]}


def check_kernel(name: str, factory: Factory, subject: Subject, engine: Engine, tokens: Sequence[int]) -> Result:
    """One kernel of ``engine.library`` on ``engine.device``, for each number of ``tokens``."""
    device = engine.device
    case, before, errors, calls, problem = CASES.get(factory.name), device.launches, [], 0, None
    try:
        if case is None:
            raise Mismatch(f"is not verified: there is no twin for {factory.name!r}")
        kernel = engine.library.kernel(name)
        for n, arguments in _calls(case, subject, tokens):
            calls += 1
            try:
                errors += _call(kernel, device, arguments)
            except Mismatch as mismatch:
                raise Mismatch(f"{mismatch}, for {n} token(s)") from None
        after = device.launches
        if after is not None and after == before:
            raise Mismatch("launched nothing on the device")
    except (Mismatch, UserError, RuntimeError, ValueError, TypeError) as error:
        problem = str(error) if isinstance(error, Mismatch) else f"fails: {first_line(error)}"
    worst = max(errors, key=lambda error: error.closeness, default=None)
    launches = None if before is None else device.launches - before
    return Result(name, factory.name, _format(factory), tuple(subject.weight_names), calls,
                  worst and worst.nmse, worst and worst.bound, max((error.share for error in errors), default=None),
                  launches, problem)


def _calls(case: Case, subject: Subject, tokens: Sequence[int]) -> Iterator[tuple[int, list[Any]]]:
    for n in tokens:
        for arguments in case(subject, n):
            yield n, arguments


def _call(kernel: Any, device: Device, arguments: list[Any]) -> list[Error]:
    """One call between guards. Raises Mismatch."""
    memory = [argument if isinstance(argument, int | float) else
              Guarded(device, argument.start() if isinstance(argument, Written) else argument)
              for argument in arguments]
    kernel(*(item if isinstance(item, int | float) else item.tensor for item in memory))
    errors = []
    for place, (argument, item) in enumerate(zip(arguments, memory)):
        if isinstance(item, int | float):
            continue
        found, intact = item.read()
        if not intact:
            raise Mismatch(f"writes outside of its argument {place}")
        if isinstance(argument, Written):
            errors.append(argument.compare(found))
        elif item.changed():
            raise Mismatch(f"changes its input {place}")
    return errors


def _format(factory: Factory) -> str:
    """What the kernel reads and writes besides float32."""
    names = ("weight_format", "dtype", "bias_dtype", "cache_dtype", "activations")
    found = [factory.arguments[name] for name in names if factory.arguments.get(name)]
    return "/".join(dict.fromkeys(name for name in found if name not in ("f32", "float32"))) or "float32"
