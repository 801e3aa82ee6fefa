"""``python -m runtime_py COMMAND``: the dispatcher. Exit codes: 0 done, 1 bad input, 2 wrong usage."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from blockffn_mlc.errors import UserError

from .commands import bench, chat, devices, generate, inspect, mlc_check, rpc_server, score, specbench, verify

_EXAMPLES = """\
examples:
  python build.py -o dist/demo                            build the demo artifact for this CPU
  python -m runtime_py generate dist/demo --prompt "In the beginning"
  python -m runtime_py inspect dist/demo --prompt "In the beginning" --plot experts.html
  python -m runtime_py score dist/demo --text-file FILE
  python -m runtime_py chat dist/demo
  python -m runtime_py bench dist/demo --modes dense,sparse,speculative --plot bench.html
  python -m runtime_py specbench dist/demo --questions question.jsonl --limit 2
  python -m runtime_py devices
  python -m runtime_py verify dist/demo
  python -m runtime_py mlc-check dist/demo
  python -m runtime_py rpc-server --key KEY

python -m runtime_py COMMAND --help explains one command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong usage leaves through argparse's SystemExit(2)."""
    if sys.stdout is None:
        print("error: standard output is closed", file=sys.stderr)
        return 1
    try:
        try:
            _run(argv)
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # a reader that left (head, less) is no error to report
            print(f"error: {error}", file=sys.stderr)
        # Point stdout elsewhere, so that the exit does not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _run(argv: Sequence[str] | None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that cannot show a character shows "?"
        sys.stdout.reconfigure(errors="replace")
    if hasattr(sys.stdin, "reconfigure"):  # bytes that are no text are refused where text is tokenised
        sys.stdin.reconfigure(errors="surrogateescape")
    if args.command is None:
        print(parser.format_help(), end="")  # print_help hides that the output takes nothing
    else:
        args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime_py", description="Run BlockFFN artifacts written by build.py.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in (generate, score, inspect, chat, bench, specbench, devices, verify, mlc_check,
                    rpc_server):
        command.add_parser(subparsers)
    return parser
