"""What our device runtimes count."""

from runtime_py.tvm_runtime import load_runtime


def counter(kind, name, *arguments):
    """``name`` of the runtime for devices of ``kind``, see docs/devices.md."""
    return load_runtime().get_global_func(f"blockffn.{kind}.{name}")(*arguments)
