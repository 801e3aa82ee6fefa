"""Measure a draft's accept length on the target's own continuations of held-out text, without a compiled model.

    python tools/draft_eval.py blockffn_mlc/demo/draft [--size 8] [--depth 4]

Every window of held-out text gives a prompt, which the target continues greedily and by sampling; "text" is how the
window itself goes on. Verification keeps what the target would have chosen anyway, so a continuation is all it takes
to know what of a tree (EAGLE-2, arXiv 2406.16858) is accepted. Weights are used as stored, in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from continuation import continued
from demo_data import read_documents  # noqa: E402
from demo_eval import windows  # noqa: E402

from blockffn_mlc.eagle_reference import Cache, EagleReference  # noqa: E402
from blockffn_mlc.errors import UserError  # noqa: E402
from blockffn_mlc.reference import Reference  # noqa: E402

PROMPT, CONTINUATION = 64, 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--target", type=Path, default=Path("blockffn_mlc/demo"))
    parser.add_argument("--size", type=int, default=8, help="nodes of a tree, its root included")
    parser.add_argument("--depth", type=int, default=4, help="levels below the root")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 0.7, 1.0])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    target = Reference.load(args.target)
    draft = EagleReference.load(args.draft, target)
    texts = held_out(args.target)
    prompts = torch.stack([ids[:PROMPT] for ids in texts])
    sequences = {"text": texts}
    for temperature in args.temperatures:
        sequences[f"temperature {temperature:g}"] = continued(target, prompts, CONTINUATION, temperature)
    results = {name: mean_accept_length(draft, these, args.size, args.depth) for name, these in sequences.items()}
    print(json.dumps({"size": args.size, "depth": args.depth, "prompts": len(prompts)} | results, indent=2))


def held_out(target: Path) -> list[Tensor]:
    """Windows of the held-out text beside the target, int64 [<= PROMPT + CONTINUATION + 1] each."""
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    texts = windows(tokenizer, read_documents(target / "heldout.txt"), PROMPT + CONTINUATION)
    return [ids for ids in texts if len(ids) > 2 * PROMPT]


@torch.no_grad()
def mean_accept_length(draft: EagleReference, sequences: list[Tensor], size: int, depth: int) -> float:
    """New tokens per target pass, the bonus token included, behind the first PROMPT tokens of each sequence."""
    tokens = passes = 0
    for ids in sequences:
        hidden = draft.target.forward(ids[None]).last_hidden
        drafted, cache = draft.forward(ids[None, 1:], hidden[:, :-1])
        root = PROMPT  # the last token chosen, not yet seen by the target
        while root < len(ids) - 1:
            tree = grow(draft, drafted[:, root - 1], [(k[:, :, :root], v[:, :, :root]) for k, v in cache], root,
                        size, depth)
            accepted = accept(tree, ids[root + 1:].tolist())
            tokens += min(accepted + 1, len(ids) - 1 - root)
            passes += 1
            root += accepted + 1
    return round(tokens / passes, 3)


def grow(draft: EagleReference, state: Tensor, cache: Cache, root: int, size: int, depth: int) -> set[tuple[int, ...]]:
    """The paths below the root of the ``size`` - 1 likeliest nodes that a tree of ``depth`` levels can have.

    ``state`` [1, H] is d of the root's row, the last in ``cache``; ``root`` is the root's position in the sequence.
    """
    keep = size - 1
    paths: list[tuple[int, ...]] = [()]
    scores, states = torch.zeros(1), state
    seen = torch.ones(1, root, dtype=torch.bool)
    nodes: list[tuple[float, tuple[int, ...]]] = []
    for level in range(depth):
        step = draft.logits(states).log_softmax(-1)
        best, choice = (scores[:, None] + step).flatten().topk(min(keep, step.numel()))
        parents, tokens = choice // step.shape[1], draft.frequent[choice % step.shape[1]]
        paths = [(*paths[parent], token) for parent, token in zip(parents.tolist(), tokens.tolist())]
        scores = best
        nodes += zip(scores.tolist(), paths)
        if level + 1 < depth:
            seen = torch.cat([seen[parents], torch.eye(len(paths), dtype=torch.bool)], 1)
            positions = torch.full((len(paths),), root + level)
            states, cache = draft.forward(tokens[None], states[parents][None], positions, cache, seen)
            states = states[0]
    nodes.sort(key=lambda node: (-node[0], len(node[1])))
    return {path for _, path in nodes[:keep]}


def accept(tree: set[tuple[int, ...]], continuation: list[int]) -> int:
    """How many tokens of the continuation the tree holds as a path from its root."""
    length = 0
    while tuple(continuation[:length + 1]) in tree:
        length += 1
        if length == len(continuation):
            break
    return length


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
