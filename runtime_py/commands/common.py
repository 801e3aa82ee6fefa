"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..engine import Engine
from ..files import read_ids, read_text
from ..sampling import Sampling


def add_command(subparsers: Any, name: str, summary: str, run: Any, details: str = "") -> argparse.ArgumentParser:
    """A sub-command with the arguments every command has."""
    description = f"{summary[0].upper()}{summary[1:]}. {details}"
    parser = subparsers.add_parser(name, help=summary, description=description)
    parser.add_argument("artifact", help="folder written by build.py")
    parser.add_argument("--threads", type=positive_int, metavar="N",
                        help="CPU threads (default: one per physical core)")
    parser.set_defaults(run=run)
    return parser


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


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that the user gave."""
    return {name: getattr(args, name) for name in Sampling.names() if getattr(args, name) is not None}


def input_ids(args: argparse.Namespace, engine: Engine) -> list[int]:
    """Tokens of the source that the user chose; texts get bos prepended, ids are taken as they are."""
    if getattr(args, "ids", None) is not None:
        return read_ids(args.ids)
    if getattr(args, "prompt", None) is not None:
        return engine.encode(args.prompt)
    return engine.encode(read_text(getattr(args, "prompt_file", None) or args.text_file))


def positive_int(text: str) -> int:
    """argparse type: an integer from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, found {value}")
    return value


def print_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(values, ensure_ascii=False, indent=2))


def note(text: str) -> None:
    """Progress and figures that are not the result: stderr."""
    print(text, file=sys.stderr, flush=True)
