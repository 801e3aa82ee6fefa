"""TVM's RPC server with the runtime of one kind of devices: what TVM's own, written in C++, is on a phone. A process
for each client, one after the other. ``python rpc_server.py KIND`` prints its port."""

import os
import socket
import struct
import sys
from contextlib import suppress

from tvm.rpc import base, server
from tvm.support import utils

from runtime_py.devices import find_device


def serve(connection, kind):
    """One client, when it is one."""
    magic, size = struct.unpack("<ii", base.recvall(connection, 8))
    if (magic, base.recvall(connection, size)) != (base.RPC_MAGIC, b"client:"):
        connection.sendall(struct.pack("<i", base.RPC_CODE_MISMATCH))
        return
    name = b"server:"
    connection.sendall(struct.pack("<ii", base.RPC_CODE_SUCCESS, len(name)) + name)
    find_device(kind)
    server._serve_loop(connection, None, utils.tempdir())


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                with suppress(OSError, RuntimeError):  # the client left, in whatever way
                    serve(connection, sys.argv[1])
                os._exit(0)
            connection.close()
            os.wait()
