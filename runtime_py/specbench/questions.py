"""Spec-Bench's questions: reading them, and their six tasks."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from blockffn_mlc.errors import UserError

from ..files import read_text
from ..jsonfile import required

# Category of a question -> task. The first eight are MT-Bench's; its "math" is another than the task of that name.
_CATEGORIES = {
    **dict.fromkeys(("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"), "mt"),
    "translation": "translation", "summarization": "summarization", "qa": "qa", "math_reasoning": "math", "rag": "rag"}
TASKS = tuple(dict.fromkeys(_CATEGORIES.values()))


@dataclass(frozen=True)
class Question:
    """``turns``: what the user says, one text after each answer."""

    id: int | str
    category: str
    turns: tuple[str, ...]

    @property
    def task(self) -> str:
        """One of ``TASKS``."""
        return task_of(self.category)


def task_of(category: str) -> str:
    """The task of one of Spec-Bench's categories."""
    return _CATEGORIES[category]


def read_questions(path: str | Path) -> list[Question]:
    """All questions of a JSONL file with the fields question_id, category, turns; others are ignored.

    Raises UserError naming file, line and field.
    """
    questions: dict[int | str, Question] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        question = _question(line, where)
        if question.id in questions:
            raise UserError(f"{where}: field 'question_id': {question.id!r} is taken by an earlier line")
        questions[question.id] = question
    if not questions:
        raise UserError(f"{path}: holds no question; expected one JSON object per line, as Spec-Bench's question.jsonl")
    return list(questions.values())


def choose(questions: list[Question], tasks: Collection[str], limit: int | None) -> list[Question]:
    """The questions of ``tasks``, in the file's order; of each task at most ``limit``, evenly spread over it (the
    file lists MT-Bench category by category). Raises UserError when none is left."""
    chosen: set[int | str] = set()
    for task in tasks:
        ids = [question.id for question in questions if question.task == task]
        count = min(limit or len(ids), len(ids))
        chosen.update(ids[i * len(ids) // count] for i in range(count))
    if not chosen:
        raise UserError(f"--tasks: the file has no question of {', '.join(tasks)}; it has some of "
                        f"{', '.join(dict.fromkeys(question.task for question in questions))}")
    return [question for question in questions if question.id in chosen]


def _question(line: str, where: str) -> Question:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object, found {values!r:.80}")
    identity = values.get("question_id")
    if not isinstance(identity, (int, str)) or isinstance(identity, bool):
        raise UserError(f"{where}: field 'question_id': expected an integer or a string, found {identity!r:.80}")
    category = required(values, "category", str, where)
    if category not in _CATEGORIES:
        raise UserError(f"{where}: field 'category': {category!r:.80} is none of Spec-Bench's "
                        f"({', '.join(_CATEGORIES)})")
    turns = required(values, "turns", list, where)
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise UserError(f"{where}: field 'turns': expected a list of at least one text, found {turns!r:.80}")
    if any("\ud800" <= char <= "\udfff" for turn in turns for char in turn):
        raise UserError(f"{where}: field 'turns': holds half of a surrogate pair, which is no text")
    return Question(identity, category, tuple(turns))
