"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from blockffn_mlc.errors import UserError

from ..devices import KINDS
from ..drafters import DRAFTS
from ..engine import Engine
from ..files import read_ids, read_text
from ..sampling import Sampling
from ..tvm_runtime import physical_cores

_PHONE_FOLDER = "/data/local/tmp/tvm"


def add_command(subparsers: Any, name: str, summary: str, run: Any, details: str = "") -> argparse.ArgumentParser:
    """A sub-command with the arguments every command has."""
    description = f"{summary[0].upper()}{summary[1:]}. {details}"
    parser = subparsers.add_parser(name, help=summary, description=description)
    parser.add_argument("artifact", help="folder written by build.py")
    parser.add_argument("--device", metavar="D", help=f"cpu, {', '.join(KINDS)} or KIND:N, see the devices command "
                        "(default: what the artifact was built for)")
    parser.add_argument("--threads", type=positive_int, metavar="N",
                        help="CPU threads (default: one per physical core)")
    parser.add_argument("--pin", action="store_true", help="bind every thread to a core of its own: steadier on an "
                        "otherwise idle machine, slow beside other work")
    parser.add_argument("--mmap", action="store_true", help="use the weights' files in place instead of reading them: "
                        "starts at once and shares memory between processes, but runs slower")
    parser.set_defaults(run=run)
    return parser


def load_engine(args: argparse.Namespace) -> Engine:
    """The artifact that the user named, with a note where more threads than cores were asked for."""
    cores = physical_cores()
    if args.threads is not None and args.threads > cores:
        note(f"note: {args.threads} threads share {cores} core(s), which is slower than --threads {cores}")
    engine = Engine.load(args.artifact, args.threads, mmap=args.mmap, pin=args.pin, device=args.device)
    engine.progress = note
    return engine


def add_rpc(parser: argparse.ArgumentParser) -> None:
    """--rpc and --rpc-folder, for commands that can run on another machine."""
    parser.add_argument("--rpc", metavar="ADDRESS", help="run there: HOST:PORT or HOST:PORT/KEY of an rpc-server, or "
                        "tracker:HOST:PORT/KEY of TVM's tracker; the artifact is sent once (docs/rpc.md)")
    parser.add_argument("--rpc-folder", metavar="DIR", help="where a phone, which runs a server of TVM's own, keeps "
                        f"what is sent (default: {_PHONE_FOLDER})")


def connect_rpc(args: argparse.Namespace) -> Any:
    """A client of the server at --rpc, a context manager. Raises UserError."""
    from ..rpc.client import connect
    from ..rpc.wire import Address

    return connect(Address.parse(args.rpc), args.rpc_folder or _PHONE_FOLDER, note)


def add_input(parser: argparse.ArgumentParser, *kinds: str) -> None:
    """One required source of tokens out of --prompt, --prompt-file, --text-file, --ids."""
    helps = {"--prompt": ("TEXT", "the text itself"), "--prompt-file": ("FILE", "a UTF-8 text file"),
             "--text-file": ("FILE", "a UTF-8 text file"),
             "--ids": ("FILE", "token ids, taken as they are: a JSON list or a one-dimensional .npy")}
    group = parser.add_mutually_exclusive_group(required=True)
    for kind in kinds:
        metavar, text = helps[kind]
        group.add_argument(kind, metavar=metavar, help=text)


def add_sampling(parser: argparse.ArgumentParser, defaults: str) -> None:
    """Sampling options; None where the user gave none."""
    group = parser.add_argument_group("sampling", f"Order: repetition penalty, temperature, top-k, top-p. {defaults}")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token")
    group.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest tokens that reach this probability")
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest tokens; 0 keeps all")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="1 is off")
    group.add_argument("--seed", type=int, metavar="S", help="makes sampled text repeatable")
    parser.add_argument("--max-tokens", type=positive_int, metavar="N", help="tokens to generate at most "
                        "(default: 256, as the context window allows)")


def add_drafting(parser: argparse.ArgumentParser) -> None:
    """Options of speculative decoding."""
    group = parser.add_argument_group("speculative decoding", "Drafted tokens are verified several at a time. "
                                      "The text is the same with and without.")
    group.add_argument("--draft", choices=DRAFTS, default="auto", help="eagle: the artifact's draft model, ngram: "
                       "lookup in the text itself, auto (default): the former where there is one, else the latter")
    group.add_argument("--tree-size", type=positive_int, metavar="N", help="draft trees of N nodes, the last token "
                       "included; 1 is plain decoding (default: as it pays)")


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that the user gave."""
    return {name: getattr(args, name) for name in Sampling.names() if getattr(args, name) is not None}


def input_ids(args: argparse.Namespace, engine: Engine) -> list[int]:
    """Tokens of the source that the user chose; texts get bos prepended, ids are taken as they are."""
    if getattr(args, "ids", None) is not None:
        return read_ids(args.ids)
    if getattr(args, "prompt", None) is not None:
        return engine.encode(args.prompt)
    prompt_file = getattr(args, "prompt_file", None)
    return engine.encode(read_text(args.text_file if prompt_file is None else prompt_file))


def add_split(parser: argparse.ArgumentParser) -> None:
    """--split, for commands that can read a long text in pieces."""
    parser.add_argument("--split", action="store_true", help="read an input longer than the context window in windows, "
                        "each from its own start")


def input_windows(args: argparse.Namespace, engine: Engine) -> list[list[int]]:
    """``input_ids`` in pieces that fit the context window: one, or with --split as many as it takes.

    Pieces of a text each begin with bos; their length is a multiple of 32 (of 8, in small windows), so that
    measurements over disjoint windows of tokens do not cross them. Raises UserError for a long input without --split.
    """
    ids, limit = input_ids(args, engine), engine.artifact.context_window_size
    if len(ids) <= limit:
        return [ids]
    if not args.split:
        raise UserError(f"{len(ids)} tokens do not fit into the context window of {limit} tokens; read them in windows "
                        "with --split, or rebuild the artifact with a larger --context-window")
    size = limit - limit % 32 or limit - limit % 8 or limit
    if args.ids is not None:
        return [ids[start:start + size] for start in range(0, len(ids), size)]
    bos, text = ids[:1], ids[1:]
    step = max(size - 1, 1)
    return [bos + text[start:start + step] for start in range(0, len(text), step)]


def number(convert: Callable[[str], float], expected: str, good: Callable[[float], bool]) -> Callable[[str], Any]:
    """argparse type: what ``convert`` makes of a text; one that is no number or not ``good`` is told what was
    ``expected``."""
    def parse(text: str) -> float:
        with suppress(ValueError):
            if good(value := convert(text)):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")

    return parse


positive_int = number(int, "a positive integer", lambda value: value > 0)


def list_of(item: Any) -> Any:
    """argparse type: values of type ``item``, separated by commas, each once."""
    def parse(text: str) -> tuple:
        return tuple(dict.fromkeys(item(part) for part in text.split(",")))

    parse.__name__ = "list"  # argparse names the type where a value does not fit it
    return parse


def print_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout; escaped to ASCII where the terminal's encoding is another than UTF-8."""
    ascii_only = (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8"
    print(json.dumps(values, ensure_ascii=ascii_only, allow_nan=False, indent=2))


def note(text: str) -> None:
    """Progress and figures that are not the result: stderr."""
    print(text, file=sys.stderr, flush=True)
