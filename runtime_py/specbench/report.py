"""What the answers say: speed and accept length by mode and task, as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .answers import Answer, Skipped
from .questions import TASKS, Question, task_of
from .run import BASELINE, MODES

AVERAGE = "average"
HEADINGS = {"mt": "MT", "translation": "Translation", "summarization": "Summarization", "qa": "QA", "math": "Math",
            "rag": "RAG", AVERAGE: "Average"}
_TABLES = {
    "tokens_per_s": "Tokens per second of decoding (± standard deviation over questions)",
    "speedup": "Speed-up of decoding against dense",
    "accept_length": "New tokens per pass (mean accept length)",
    "union_share": "Share of the experts that the nodes of a token tree use, together",
    "whole_tokens_per_s": "Tokens per second of whole answers, prefill included",
}

Result = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """``facts`` of the run; ``rows``, one per mode and task; ``skipped`` questions; ``different``: questions whose text
    is not the same in all modes; ``cut``: questions with an answer that the end of the context window cut off;
    ``undecoded``: questions whose answers all were a single token, which have no speed of decoding."""

    facts: dict[str, Any]
    rows: list[Result]
    skipped: list[Skipped]
    different: list[int | str]
    cut: list[int | str]
    undecoded: list[int | str]

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(row["mode"] for row in self.rows))

    @property
    def tasks(self) -> list[str]:
        """Tasks that have questions, and the average."""
        return list(dict.fromkeys(row["task"] for row in self.rows if row["questions"]))

    def row(self, mode: str, task: str) -> Result:
        return next(row for row in self.rows if (row["mode"], row["task"]) == (mode, task))


def make_report(questions: Sequence[Question], answers: Mapping[str, Mapping[int | str, Answer]],
                skipped: Mapping[int | str, Skipped], facts: dict[str, Any]) -> Report:
    """``answers`` by mode, then by question. Questions that were skipped do not count, nor do answers to others than
    ``questions``."""
    asked = [question for question in questions if question.id not in skipped]
    found = {question.id: [by_question[question.id] for by_question in answers.values()] for question in asked}
    return Report(
        facts, _rows(asked, answers, facts["tree_size"]),
        [skipped[question.id] for question in questions if question.id in skipped],
        [i for i, given in found.items() if any(answer.turns != given[0].turns for answer in given)],
        [i for i, given in found.items() if any("window" in answer.finish_reasons for answer in given)],
        [i for i, given in found.items() if any(decode_rate(answer) is None for answer in given)])


def decode_rate(answer: Answer) -> float | None:
    """Tokens per second of decoding: those after each turn's first, which comes out of the prefill, over their time."""
    seconds = sum(answer.wall_time) - sum(answer.prefill_time)
    tokens = sum(answer.new_tokens) - len(answer.turns)
    return tokens / seconds if tokens and seconds > 0 else None


def whole_rate(answer: Answer) -> float:
    """Tokens per second with the prefill: what Spec-Bench's own script computes from the file."""
    return sum(answer.new_tokens) / sum(answer.wall_time)


def _rows(questions: Sequence[Question], answers: Mapping[str, Mapping[int | str, Answer]],
          tree_size: int | None) -> list[Result]:
    """Means over questions for speeds, over passes for the accept length; speed-ups are ratios of means (all as in
    Spec-Bench). The average is over all questions, whatever their task."""
    rows = []
    for mode, by_question in answers.items():
        for task in (*TASKS, AVERAGE):
            group = [by_question[question.id] for question in questions if task in (question.task, AVERAGE)]
            decode = [rate for rate in map(decode_rate, group) if rate is not None]
            lengths = [length for answer in group for length in answer.accept_lengths]
            shares = [share for answer in group for share in answer.union_shares]
            rows.append({
                "mode": mode, "paper": MODES[mode].paper_row(tree_size), "task": task, "questions": len(group),
                "tokens_per_s": _mean(decode),
                "tokens_per_s_std": statistics.stdev(decode) if len(decode) > 1 else None,
                "speedup": None, "accept_length": _mean(lengths), "trees": len(shares), "union_share": _mean(shares),
                "whole_tokens_per_s": _mean([whole_rate(answer) for answer in group]), "whole_speedup": None})
    for row in rows:
        base = next((base for base in rows if base["mode"] == BASELINE and base["task"] == row["task"]), {})
        row["speedup"] = _ratio(row["tokens_per_s"], base.get("tokens_per_s"))
        row["whole_speedup"] = _ratio(row["whole_tokens_per_s"], base.get("whole_tokens_per_s"))
    return rows


def to_json(report: Report) -> str:
    """One object: facts, rows, and the questions that need a remark."""
    values = {**report.facts, "results": report.rows, "skipped": [asdict(skipped) for skipped in report.skipped],
              "different": report.different, "cut": report.cut, "undecoded": report.undecoded}
    return json.dumps(values, indent=1, allow_nan=False)


def to_csv(report: Report) -> str:
    """A line per mode and task."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(report.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.rows)
    return text.getvalue().rstrip("\n")


def to_markdown(report: Report) -> str:
    """A table per figure, modes by tasks, as in the paper; remarks below."""
    facts = report.facts
    trees = f"{facts['tree_size']} nodes" if facts["tree_size"] else "a size chosen pass by pass"
    lines = [f"Spec-Bench with {facts['artifact']} ({facts['quantization']}, built for {facts['host']}) on "
             f"{facts['machine']}, {facts['threads']} thread(s). Greedy, at most {facts['max_tokens']} tokens a turn, "
             f"trees of {trees}. Modes take turns at every question; figures are means over questions.",
             *(f"\nWarning: {text}." for text in facts["warnings"])]
    modes, tasks = report.modes, report.tasks
    for figure, title in _TABLES.items():
        if all(row[figure] is None for row in report.rows):
            continue
        lines += ["", f"{title}:", "", _line(["mode", "in the paper", *(HEADINGS[task] for task in tasks)]),
                  "|" + "---|" * (2 + len(tasks))]
        lines += [_line([mode, _paper_cell(report, mode), *(_cell(figure, report.row(mode, task)) for task in tasks)])
                  for mode in modes]
    counts = {task: report.row(modes[0], task)["questions"] for task in tasks if task != AVERAGE}
    lines += ["", f"Answered: {_by_task(counts)}.", *_remarks(report)]
    return "\n".join(lines)


FORMATS = {"md": to_markdown, "csv": to_csv, "json": to_json}


def _remarks(report: Report) -> list[str]:
    lines = []
    if len(report.modes) > 1:
        lines.append(f"Text differs between modes: {_listed(report.different)}.")
    if report.skipped:
        counts = Counter(task_of(skipped.category) for skipped in report.skipped)
        lines.append("Skipped, as the prompt does not fit into the context window of "
                     f"{report.skipped[0].context_window} tokens: {_by_task(counts)}.")
    if report.cut:
        lines.append(f"Answers that the end of the context window cut off: {_listed(report.cut)}.")
    if report.undecoded:
        lines.append("Without a speed of decoding, as the answers are a single token: "
                     f"{_listed(report.undecoded)}.")
    return lines


def _by_task(counts: Mapping[str, int]) -> str:
    """The sum, and what it is made of."""
    parts = ", ".join(f"{HEADINGS[task]} {count}" for task, count in counts.items())
    return f"{sum(counts.values())} question(s)" + (f" ({parts})" if parts else "")


def _listed(ids: Sequence[int | str], shown: int = 10) -> str:
    """How many, and the first few."""
    names = ", ".join(map(str, ids[:shown])) + (", ..." if len(ids) > shown else "")
    return f"{len(ids)} question(s)" + (f" ({names})" if ids else "")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _paper_cell(report: Report, mode: str) -> str:
    """The paper's row, and whether the mode did what its name says."""
    row = report.row(mode, AVERAGE)
    plain = "plain decoding: no tree was verified" if MODES[mode].drafts and not row["trees"] else ""
    return "; ".join(part for part in (row["paper"], plain) if part)


def _cell(figure: str, row: Result) -> str:
    value = row[figure]
    if value is None:
        return ""
    if figure == "union_share":
        return f"{value:.1%}"
    spread = row.get(f"{figure}_std")
    return f"{value:.2f}" + ("x" if figure == "speedup" else "") + (f" ± {spread:.2f}" if spread is not None else "")


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
