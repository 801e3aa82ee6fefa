"""Text to tokens and back, and a decoder for text that arrives token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer as HubTokenizer

from blockffn_mlc.errors import UserError

_REPLACEMENT = "\ufffd"
_SPACE = "\u2581"  # the sign sentencepiece writes for a space
_BY_TOKEN = ("ByteFallback", "Metaspace", "Replace")  # steps of decoders that change every token by itself
_JOINING = ("ByteLevel", "Fuse")  # steps that make one text of all tokens, which those behind them change as a whole
_CONTEXT = 16  # tokens before the first streamed one that its spacing may depend on


class Tokenizer:
    """``tokenizer.json`` of an artifact."""

    def __init__(self, backend: HubTokenizer) -> None:
        self._backend = backend
        self._special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.joins = _joins(backend)
        # Text of streamed tokens behind others and length of their text alone, where these depend on nothing else.
        self.pieces: dict[int, tuple[str, int]] = {}
        # Asked for every streamed token; the library takes microseconds.
        self.is_silent, self.is_byte, self.text_length = (
            cache(method) for method in (self._is_silent, self._is_byte, self._text_length))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Raises UserError when the file is missing (random-weight artifacts have none) or damaged."""
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file: this artifact has no tokenizer; give token ids with --ids")
        try:
            backend = HubTokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the tokenizers library raises nothing narrower
            raise UserError(f"{path}: not a usable tokenizer ({error}); copy it again") from None
        # Leftovers of training, which would cut prompts short or fill them up.
        backend.no_truncation()
        backend.no_padding()
        return cls(backend)

    def encode(self, text: str) -> list[int]:
        """Token ids, without bos. Special tokens written in the text become their ids. Raises UserError for
        a text with lone surrogates, which Python makes of bytes that are not UTF-8."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError("the text is not valid UTF-8; give it in UTF-8") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def label(self, token_id: int) -> str:
        """A token for tables: its text with visible spaces and line ends, else the vocabulary's spelling
        (special tokens, parts of characters), else a placeholder; control characters escaped."""
        spelling = self._backend.id_to_token(token_id)
        if spelling is None:
            return f"<{token_id}>"
        text = self.decode([token_id])
        if not text or _REPLACEMENT in text or _SPACE in spelling:
            text = spelling
        text = text.replace(" ", _SPACE).replace("\n", "\u23ce")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    def _is_silent(self, token_id: int) -> bool:
        """Whether decoding leaves the token out: special ones and ids without a spelling."""
        return token_id in self._special or self._backend.id_to_token(token_id) is None

    def _is_byte(self, token_id: int) -> bool:
        """Whether the token stands for one raw byte (``<0xE4>``), part of a character spelled in bytes."""
        token = self._backend.id_to_token(token_id) or ""
        return len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    def _text_length(self, token_id: int) -> int:
        """Characters of the token decoded by itself."""
        return len(self.decode([token_id]))


def _joins(backend: HubTokenizer) -> bool:
    """Whether a whole token's text is the same behind any whole characters, as the common decoders have it; others may
    change spaces or cut the text's end."""
    decoder = json.loads(backend.to_str())["decoder"] or {}
    joined = False
    for step in decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]:
        if step.get("type") == "Strip" and not step.get("stop"):
            continue  # changes the beginning only
        if joined or step.get("type") not in (*_BY_TOKEN, *_JOINING):
            return False
        joined = step["type"] in _JOINING
    return True


class StreamDecoder:
    """Text of tokens as they come. The pieces concatenate to what decoding all tokens at once adds to
    the context's text, and no piece ends within a character."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        """``context``: the tokens before the first one, for spacing; their text is not returned."""
        self._tokenizer, self._pieces = tokenizer, tokenizer.pieces
        self._window = [token for token in context if not tokenizer.is_silent(token)][-_CONTEXT:]
        self._emitted = len(self._stable(tokenizer.decode(self._window)))
        self._whole = False  # the window is one token, all of whose text is out

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes; empty while a character is incomplete."""
        if self._whole and (known := self._pieces.get(token_id)):
            self._window[0] = token_id
            piece, self._emitted = known
            return piece
        if self._tokenizer.is_silent(token_id):
            return ""
        followed, self._whole = self._whole, False
        self._window.append(token_id)
        # A run of byte tokens is decoded as a whole: one invalid byte changes all of it.
        if self._tokenizer.is_byte(token_id):
            return ""
        text = self._tokenizer.decode(self._window)
        stable = self._stable(text)
        piece, self._emitted = stable[self._emitted:], max(len(stable), self._emitted)
        if stable == text and piece:
            # Keep the last token for spacing: its text is what the next window has already emitted.
            self._window = [token_id]
            self._emitted = self._tokenizer.text_length(token_id)
            self._whole = True
            if followed and self._tokenizer.joins:
                self._pieces[token_id] = piece, self._emitted
        return piece

    def finish(self) -> str:
        """What is left when no more tokens come, incomplete characters as U+FFFD."""
        text = self._tokenizer.decode(self._window)
        piece, self._emitted = text[self._emitted:], len(text)
        return piece

    @staticmethod
    def _stable(text: str) -> str:
        # One trailing U+FFFD may be the beginning of a character; those before it are final.
        return text.removesuffix(_REPLACEMENT)
