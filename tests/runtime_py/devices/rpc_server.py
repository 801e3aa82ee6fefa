"""TVM's RPC server for one connection, with the runtime of one kind of devices: what TVM's own, written in C++, is on a
phone. ``python rpc_server.py KIND`` prints its port."""

import socket
import struct
import sys

from tvm.rpc import base, server
from tvm.support import utils

from runtime_py.devices import find_device

if __name__ == "__main__":
    find_device(sys.argv[1])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    magic, size = struct.unpack("<ii", base.recvall(connection, 8))
    assert (magic, base.recvall(connection, size)) == (base.RPC_MAGIC, b"client:")
    name = b"server:"
    connection.sendall(struct.pack("<ii", base.RPC_CODE_SUCCESS, len(name)) + name)
    server._serve_loop(connection, None, utils.tempdir())
