"""A file of questions as Spec-Bench's, for the toy model."""

import json

QUESTIONS = [{"question_id": 81, "category": "writing", "turns": ["the", "ing the"]},
             {"question_id": 82, "category": "math", "turns": ["in the in the"]},
             {"question_id": "q3", "category": "qa", "turns": ["thing"], "reference": ["x"]}]


def write(path, *questions):
    path.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    return path
