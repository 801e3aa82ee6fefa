"""A parser of its own for the modules that TVM packs into a library."""

import struct


class Reader:
    """Little endian; counts have 64 bits."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, form: str):
        values = struct.unpack_from("<" + form, self.data, self.position)
        self.position += struct.calcsize("<" + form)
        return values if len(values) > 1 else values[0]

    def bytes(self) -> bytes:
        size = self.take("Q")
        self.position += size
        assert self.position <= len(self.data)
        return self.data[self.position - size:self.position]

    def list(self, read) -> list:
        return [read() for _ in range(self.take("Q"))]

    def text(self) -> str:
        return self.bytes().decode()


def read_functions(reader: Reader):
    """What a module of kernels says of each: {name: (name, types, tags, extra tags)}."""
    return {reader.text(): (reader.text(), reader.list(lambda: reader.take("BBH")), reader.list(reader.text),
                            reader.list(lambda: reader.take("i"))) for _ in range(reader.take("Q"))}


def read_library(data: bytes):
    """TVM's packed modules: the import tree, and kind and bytes of each."""
    reader = Reader(data)
    assert reader.take("Q") == len(data) - 8
    rows, columns = reader.list(lambda: reader.take("Q")), reader.list(lambda: reader.take("Q"))
    modules = []
    while reader.position < len(data):
        kind = reader.text()
        modules.append((kind, None if kind == "_lib" else reader.bytes()))
    return rows, columns, modules
