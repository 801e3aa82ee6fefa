"""``rpc-server``: lets another machine's ``bench`` and ``verify`` use this one's devices."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from blockffn_mlc.errors import UserError

from ..files import cache_folder
from .common import note

_PORT = 9090


def add_parser(subparsers: Any) -> None:
    summary = "serve this machine's devices to bench --rpc and verify --rpc"
    parser = subparsers.add_parser(
        "rpc-server", help=summary, description=f"{summary.capitalize()} (docs/rpc.md), one client at a time, until it "
        "is ended. Prints its address. Like every server of TVM's RPC it runs whatever code a client who knows the key "
        "sends, and nothing is encrypted: open it to other machines in a network of yours alone.")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen at: 0.0.0.0 for other "
                        "machines (default: 127.0.0.1, this one alone)")
    parser.add_argument("--port", type=int, default=_PORT, metavar="N", help=f"0: a free one (default: {_PORT})")
    parser.add_argument("--key", default="", metavar="KEY", help="what clients have to know")
    parser.add_argument("--tracker", metavar="HOST:PORT", help="register at TVM's tracker by --key")
    parser.add_argument("--storage", metavar="DIR", help="folder for what clients send (default: rpc in the cache "
                        "folder)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from ..rpc.connection import is_loopback
    from ..rpc.server import Server
    from ..rpc.wire import Address

    if not 0 <= args.port <= 65535:
        raise UserError(f"--port: expected 0 to 65535, found {args.port}")
    if args.key.split() != [args.key] * bool(args.key):
        raise UserError("--key: expected a word without spaces")
    if args.tracker is not None and not args.key:
        raise UserError("--tracker: expected --key beside it, by which clients ask for this server")
    if not is_loopback(args.host) and not args.key:
        note("warning: without --key whoever reaches this address may run code here")
    tracker = Address.parse(args.tracker) if args.tracker else None
    if tracker and (tracker.key or tracker.tracker):
        raise UserError(f"--tracker: expected HOST:PORT, found {args.tracker!r}; its key is --key")
    if tracker and is_loopback(args.host) and not is_loopback(tracker.host):
        raise UserError(f"--tracker {args.tracker}: it would send clients to this machine's address in the network, "
                        f"where a server at {args.host} does not listen; add --host 0.0.0.0")
    server = Server(args.host, args.port, args.key, Path(args.storage or cache_folder() / "rpc"), tracker, note)
    print(f"{server.host}:{server.port}", flush=True)
    server.run()
