"""Answers on disk: one Spec-Bench JSONL file per mode, written as they come, so that a run can go on later."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockffn_mlc.errors import UserError

from ..files import replacing
from ..jsonfile import read_json

SETTINGS, SKIPPED = "settings.json", "skipped.jsonl"


@dataclass(frozen=True)
class Answer:
    """What one mode answered, a list item per turn.

    The names are Spec-Bench's: ``decoding_steps`` passes after the prefill, ``new_tokens`` tokens with the stop
    token, ``wall_time`` seconds with the prefill, ``accept_lengths`` new tokens of every pass, all turns in one list.
    Ours: ``union_shares``, of every pass that verified a token tree, in one list, the share of all experts that its
    nodes use; ``prefill_time`` seconds until the first token; ``finish_reasons`` "eos", "length" (``--max-tokens``) or
    "window" (the context window was full before that).
    """

    question_id: int | str
    category: str
    turns: list[str]
    decoding_steps: list[int]
    new_tokens: list[int]
    wall_time: list[float]
    accept_lengths: list[int]
    union_shares: list[float]
    prefill_time: list[float]
    finish_reasons: list[str]

    def record(self, model_id: str) -> dict[str, Any]:
        """The line of the file."""
        choice = asdict(self)
        question = {name: choice.pop(name) for name in ("question_id", "category")}
        return {**question, "answer_id": uuid.uuid4().hex, "model_id": model_id,
                "choices": [{"index": 0, **choice}], "tstamp": time.time()}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Answer:
        """From a line. Raises KeyError, TypeError or ValueError for another object."""
        choice = dict(record["choices"][0])
        del choice["index"]
        answer = cls(record["question_id"], record["category"], **choice)
        per_turn = (answer.decoding_steps, answer.new_tokens, answer.wall_time, answer.prefill_time,
                    answer.finish_reasons)
        if any(len(values) != len(answer.turns) for values in per_turn):
            raise ValueError("lists of different lengths")
        return answer


@dataclass(frozen=True)
class Skipped:
    """A question that no mode answers: with turn number ``turn`` (from 1 on) the conversation has ``prompt_tokens``
    tokens, which leaves no room for an answer."""

    question_id: int | str
    category: str
    turn: int
    prompt_tokens: int
    context_window: int


class AnswerStore:
    """A folder of answers: MODE.jsonl, skipped.jsonl and settings.json. Use it as a context manager.

    ``answers``: by mode, then by question; ``skipped``: by question.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], modes: Sequence[str],
                 note: Callable[[str], None]) -> None:
        """Start a folder or go on with one; ``settings`` (JSON values) are what makes answers comparable.

        A last line that was cut off is taken out, and its question asked again. Raises UserError for a folder of
        other files, of answers with other settings, or with damaged lines.
        """
        self.folder = Path(folder)
        self._note = note
        self._prepare(settings)
        self._name = settings["artifact"]
        self.answers = {mode: self._read(self._path(mode), Answer.of) for mode in modes}
        self.skipped = self._read(self.folder / SKIPPED, lambda record: Skipped(**record))
        self._files = ExitStack()

    def __enter__(self) -> AnswerStore:
        self._append = {path: self._files.enter_context(path.open("ab", buffering=0))
                        for path in (*map(self._path, self.answers), self.folder / SKIPPED)}
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, mode: str, answer: Answer) -> None:
        """Keep an answer."""
        self._write(self._path(mode), answer.record(f"{self._name}/{mode}"))
        self.answers[mode][answer.question_id] = answer

    def skip(self, skipped: Skipped) -> None:
        """Keep that a question was skipped."""
        self._write(self.folder / SKIPPED, asdict(skipped))
        self.skipped[skipped.question_id] = skipped

    def _path(self, mode: str) -> Path:
        return self.folder / f"{mode}.jsonl"

    def _prepare(self, settings: dict[str, Any]) -> None:
        path = self.folder / SETTINGS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            known = path.is_file() or not any(self.folder.iterdir())
            empty = not any(file.stat().st_size for file in self.folder.glob("*.jsonl"))
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be used as a folder of answers ({error.strerror})") from None
        if not known:
            raise UserError(f"{self.folder}: holds files but no {SETTINGS}, so it is no folder of answers; "
                            "name another")
        if empty:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            return
        found = read_json(path)
        for name in dict.fromkeys((*settings, *found)):
            if found.get(name) != settings.get(name):
                raise UserError(f"{self.folder}: holds answers with {name} {found.get(name)!r}, now it is "
                                f"{settings.get(name)!r}; name another folder, or go on with the same settings")

    def _read(self, path: Path, parse: Callable[[dict[str, Any]], Any]) -> dict[int | str, Any]:
        """What the lines of a file hold, by question."""
        if not path.exists():
            return {}
        *lines, rest = path.read_bytes().split(b"\n")
        kept = len(lines)
        if kept and not rest and _torn(lines[-1]):
            kept -= 1
        if rest or kept < len(lines):
            os.truncate(path, sum(len(line) + 1 for line in lines[:kept]))
            self._note(f"note: {path}: its last line was cut off; that question is asked again")
        found = {}
        for number, line in enumerate(lines[:kept], 1):
            try:
                item = parse(json.loads(line))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not a line that this command wrote ({type(error).__name__}: "
                                f"{error}); delete the file to ask its questions again") from None
            if item.question_id in found:
                raise UserError(f"{path}, line {number}: question {item.question_id!r} was answered by an earlier "
                                "line; delete the file to ask its questions again")
            found[item.question_id] = item
        return found

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._append[path].write(line) != len(line):
            raise UserError(f"{path}: cannot be written (no space left)")


def _torn(line: bytes) -> bool:
    """Whether a line ended before its object did (zeros included, which a lost machine may leave)."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False
