"""The demo model's text, split and tokenizer: the King James Bible of Debian's package bible-kjv-text.

    apt-get install bible-kjv bible-kjv-text
    python tools/demo_data.py [--output build/demo]

The package holds the text in its own compressed format; its program `bible` prints it, one verse a line.
One chapter is one document; every twentieth chapter is held out. Writes train.txt, heldout.txt (documents
separated by an empty line) and tokenizer.json, trained on the training part only.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from blockffn_mlc.errors import UserError  # noqa: E402

FOLDER = Path("build/demo")
WHOLE_BIBLE = "gen1:1-rev22:21"
VERSE = re.compile(r"^(\w+?)(\d+):\d+ (.*)$")
HELD_OUT_EVERY, HELD_OUT_FIRST = 20, 10
VOCABULARY = 2048
UNK, BOS, EOS = 0, 1, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER)
    output = parser.parse_args().output
    train, held_out = split(chapters(bible_text()))
    output.mkdir(parents=True, exist_ok=True)
    write(output / "train.txt", "\n\n".join(train) + "\n")
    write(output / "heldout.txt", "\n\n".join(held_out) + "\n")
    write(output / "tokenizer.json", train_tokenizer(train).to_str(pretty=False))
    print(f"{len(train)} chapters to train on, {len(held_out)} held out, in {output}", file=sys.stderr)


def bible_text() -> str:
    """The whole text as the package's program prints it. Raises UserError when the program is missing."""
    try:
        return subprocess.run(["bible", "-f", WHOLE_BIBLE], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise UserError("the program `bible` does not run; install Debian's bible-kjv and bible-kjv-text") from None


def chapters(text: str) -> list[str]:
    """Group lines like "Gen1:1 In the beginning ..." into chapters: their verses, one a line."""
    documents: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        book, chapter, verse = VERSE.match(line).groups()
        documents.setdefault((book, chapter), []).append(verse)
    return ["\n".join(verses) for verses in documents.values()]


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    """(training documents, held-out documents): whole chapters, every twentieth held out."""
    held_out = range(HELD_OUT_FIRST, len(documents), HELD_OUT_EVERY)
    return [text for index, text in enumerate(documents) if index not in held_out], [documents[i] for i in held_out]


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """Byte-level BPE: any text survives encode and decode. It adds no special tokens by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def read_documents(path: Path) -> list[str]:
    """Documents of a text file, separated by empty lines. Raises UserError when there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run tools/demo_data.py first")
    return path.read_text(encoding="utf-8").strip("\n").split("\n\n")


def encode(tokenizer: Tokenizer, document: str) -> list[int]:
    """Token ids of a document between the beginning and the end token."""
    return [BOS, *tokenizer.encode(document).ids, EOS]


def token_stream(tokenizer: Tokenizer, documents: list[str]) -> torch.Tensor:
    """All documents' ids one after the other, int64 [N]."""
    return torch.tensor([token for document in documents for token in encode(tokenizer, document)])


def write(path: Path, text: str) -> None:
    """Write a whole text file at once, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
