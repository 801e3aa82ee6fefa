"""How a conversation becomes tokens: the tokenizer's own chat template, else the artifact's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from blockffn_mlc.errors import UserError

from .artifact import CHAT_CONFIG, Artifact
from .files import read_text
from .jsonfile import int_list, read_json, required
from .tokenizer import Tokenizer

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass
class Turn:
    """A question and what was answered; ``reply_ids`` includes the stop token where one came."""

    question: str
    reply: str = ""
    reply_ids: list[int] = field(default_factory=list)


class Template(Protocol):
    """Renders turns to tokens. The last turn is still to be answered."""

    stop_ids: frozenset[int]

    def render(self, turns: Sequence[Turn]) -> list[int]: ...


def load_template(artifact: Artifact, tokenizer: Tokenizer) -> Template:
    """The template of the tokenizer if it has one (chat_template.jinja before tokenizer_config.json), else the
    conv_template of mlc-chat-config.json.

    Raises UserError when it is malformed, or needs jinja2 and that is not installed.
    """
    path = artifact.path / _TOKENIZER_CONFIG
    config = read_json(path) if path.is_file() else {}
    file = artifact.path / _TEMPLATE_FILE
    if file.is_file():
        return JinjaTemplate(read_text(file), file, config, artifact, tokenizer)
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if isinstance(template, str):
        return JinjaTemplate(template, path, config, artifact, tokenizer)
    return InlineTemplate(artifact, tokenizer)


class InlineTemplate:
    """MLC's conv_template object. Released chat models: bos, then per turn <用户> question <AI> answer eos."""

    def __init__(self, artifact: Artifact, tokenizer: Tokenizer) -> None:
        where = artifact.path / CHAT_CONFIG
        values = required(artifact.chat_config, "conv_template", dict, where)
        roles = required(values, "roles", dict, where)
        seps = required(values, "seps", list, where)
        if not 1 <= len(seps) <= 2 or not all(isinstance(sep, str) for sep in seps):
            raise UserError(f"{where}: field 'seps': expected one or two strings, found {seps!r:.80}")
        content_sep, empty_sep = (required(values, key, str, where) for key in ("role_content_sep", "role_empty_sep"))
        system = required(values, "system_template", str, where).replace(
            "{system_message}", required(values, "system_message", str, where))
        bos = [artifact.config.bos_token_id]
        self._tokenizer = tokenizer
        self._opening = (int_list(values, "system_prefix_token_ids", where)
                         if values.get("system_prefix_token_ids") is not None else bos) + tokenizer.encode(system)
        self._before = required(roles, "user", str, where) + content_sep
        self._after = seps[0] + required(roles, "assistant", str, where) + empty_sep
        self._end = tokenizer.encode(seps[-1])
        self.stop_ids = frozenset(int_list(values, "stop_token_ids", where)) | {*artifact.config.eos_token_id}

    def render(self, turns: Sequence[Turn]) -> list[int]:
        """Tokens up to the answer that is to come. Answers keep the very ids that were generated."""
        ids = list(self._opening)
        for turn in turns:
            ids += self._tokenizer.encode(self._before + turn.question + self._after)
            if turn is not turns[-1]:
                stopped = turn.reply_ids and turn.reply_ids[-1] in self.stop_ids
                ids += (turn.reply_ids[:-1] if stopped else turn.reply_ids) + self._end
        return ids


class JinjaTemplate:
    """The tokenizer's chat template, in jinja2's sandbox. Answers also stop at the tokenizer's own eos token."""

    def __init__(self, source: str, where: Path, config: dict[str, Any], artifact: Artifact,
                 tokenizer: Tokenizer) -> None:
        self._where = where
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise UserError(f"{where} has a chat template, which needs jinja2: pip install jinja2") from None
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                    extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = self._refuse
        with self._refusing():
            self._template = environment.from_string(source)
        self._tokenizer = tokenizer
        self._bos = artifact.config.bos_token_id
        self._special = {name: _content(config.get(name)) for name in _SPECIAL_TOKENS}
        eos = tokenizer.encode(self._special["eos_token"])
        self.stop_ids = frozenset(artifact.config.eos_token_id) | frozenset(eos if len(eos) == 1 else ())

    def render(self, turns: Sequence[Turn]) -> list[int]:
        """Tokens up to the answer that is to come, behind bos whether the template writes it or not."""
        messages = []
        for turn in turns:
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.reply}]
        with self._refusing():
            text = self._template.render(messages=messages[:-1], add_generation_prompt=True, **self._special)
        ids = self._tokenizer.encode(text)
        return ids if ids[:1] == [self._bos] else [self._bos, *ids]

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a template is a program: it can fail in any way
            self._refuse(str(error) or type(error).__name__)

    def _refuse(self, message: str) -> None:
        raise UserError(f"{self._where}: the chat template cannot be used: {message}")


def _content(token: Any) -> str:
    """A special token is stored as its text or as an object with its text."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")
