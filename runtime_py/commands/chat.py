"""``chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import replace
from typing import Any

from blockffn_mlc.errors import UserError

from ..conversation import Conversation
from ..generation import Generation
from ..sampling import Sampling
from .common import add_command, add_drafting, add_sampling, given_sampling, load_engine, note, positive_int

HELP = """\
/help             this text
/stats            speed of the last answer, fill of the context window
/reset            forget the conversation
/set              show the settings
/set NAME VALUE   change one: temperature, top_p, top_k, repetition_penalty, seed, max_tokens
                  (the last two also: none)
/exit             leave (also Ctrl-D); Ctrl-C breaks an answer off"""

_ARTIFACT_DEFAULTS = ("temperature", "top_p", "repetition_penalty")


def add_parser(subparsers: Any) -> None:
    parser = add_command(subparsers, "chat", "talk to the model in the terminal", run,
                         "The cache is kept from turn to turn. Commands inside: /help /stats /reset /set /exit.")
    add_sampling(parser, "Default: what the artifact's mlc-chat-config.json says.")
    add_drafting(parser)


def run(args: argparse.Namespace) -> None:
    if sys.stdin is None:
        raise UserError("chat reads from standard input, which is closed")
    engine = load_engine(args)
    defaults = {name: engine.artifact.chat_config[name] for name in _ARTIFACT_DEFAULTS
                if isinstance(engine.artifact.chat_config.get(name), (int, float))}
    conversation = Conversation(engine, args.draft, args.tree_size)
    chat = Chat(conversation, Sampling(**defaults | given_sampling(args)), args.max_tokens)
    with contextlib.suppress(ImportError):  # line editing and history, where the system has it
        import readline  # noqa: F401
    note(f"{engine.artifact.name}: /help lists the commands")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            note("")
            continue
        if line == "/exit":
            break
        try:
            chat.command(line) if line.startswith("/") else chat.answer(line)
        except UserError as error:
            note(f"error: {error}")


class Chat:
    """The state of the loop: a conversation and its settings."""

    def __init__(self, conversation: Conversation, sampling: Sampling, max_tokens: int | None) -> None:
        self.conversation = conversation
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.last: Generation | None = None

    def answer(self, question: str) -> None:
        """Stream the answer to stdout. Ctrl-C keeps what has come so far."""
        if not question:
            return
        try:
            self.last = self.conversation.ask(question, self.sampling, self.max_tokens)
            for token in self.last:
                print(token.text, end="", flush=True)
        except KeyboardInterrupt:
            note(" [broken off]")
        print(flush=True)

    def command(self, line: str) -> None:
        """One line that starts with a slash. Raises UserError for a wrong setting."""
        name, *arguments = line.split()
        if name == "/help":
            print(HELP)
        elif name == "/stats":
            session = self.conversation.session
            print(self.last.figures() if self.last else "no answer yet")
            print(f"context {session.length} of {session.length + session.room} tokens")
        elif name == "/reset":
            self.conversation.reset()
        elif name == "/set" and len(arguments) == 2:
            self._set(*arguments)
        elif name == "/set" and not arguments:
            print(", ".join(f"{key} {getattr(self.sampling, key)}" for key in Sampling.names())
                  + f", max_tokens {self.max_tokens}")
        else:
            raise UserError(f"unknown command {line!r:.60}; /help lists them")

    def _set(self, name: str, text: str) -> None:
        kinds = {"temperature": float, "top_p": float, "repetition_penalty": float, "top_k": int, "seed": int,
                 "max_tokens": positive_int}
        if name not in kinds:
            raise UserError(f"unknown setting {name!r}; expected one of {', '.join(kinds)}")
        optional = name in ("seed", "max_tokens")
        try:
            value = None if optional and text.lower() == "none" else kinds[name](text)
        except (ValueError, argparse.ArgumentTypeError):
            raise UserError(f"{name}: expected a number{' or none' * optional}, found {text!r:.40}") from None
        if name == "max_tokens":
            self.max_tokens = value
        else:
            self.sampling = replace(self.sampling, **{name: value})
