"""A small model with grouped-query attention whose greedy text hardly repeats itself, and a draft trained on it."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from checkpoints import GQA, write_config, write_random_draft, write_tensors

from blockffn_mlc.eagle_reference import EagleReference
from blockffn_mlc.random_model import RandomCheckpoint
from blockffn_mlc.reference import Reference

VOCAB = 512
# Each token has a usual successor, all on one circle. With this gain attention and experts prefer another one to
# every third: a little more and there is nothing to learn for a draft, a little less and texts follow the circle.
GAIN = 8


def write_varied_model(folder, seed=0):
    """Random weights, but for the head: its row of a token's usual successor is that token's embedding."""
    config = replace(GQA, vocab_size=VOCAB, tie_word_embeddings=False, ffn_type="block")
    source, rng = RandomCheckpoint(config, str(seed)), np.random.default_rng(seed)
    circle = rng.permutation(VOCAB)
    embedding = rng.standard_normal((VOCAB, config.hidden_size), np.float32)
    head = np.empty_like(embedding)
    head[np.roll(circle, -1)] = embedding[circle]
    tensors = {name: source.read(name) * (GAIN if name.endswith(("o_proj.weight", "down_proj")) else 1)
               for name in source.expected}
    write_config(folder, config)
    write_tensors(folder, tensors | {"model.embed_tokens.weight": embedding / config.scale_emb, "lm_head.weight": head})


def train_draft(model, folder, steps=100, seed=0):
    """Write a draft of the model in the folder ``model``, trained for some steps (seconds of work) to name what the
    model itself would choose behind random tokens."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more are no help with so little to do
    target = Reference.load(model)
    write_random_draft(folder, target.config, seed)
    draft = EagleReference.load(folder, target)
    tensors = [tensor.requires_grad_() for tensor in draft.tensors.values()]
    optimizer, generator = torch.optim.Adam(tensors, 0.01), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(3, VOCAB, (8, 32), generator=generator)
        with torch.no_grad():
            output = target.forward(ids)
        drafted, _ = draft.forward(ids[:, 1:], output.last_hidden[:, :-1])
        choices = output.logits[:, 1:].argmax(-1)
        loss = F.cross_entropy(draft.logits(drafted).flatten(0, 1), choices.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    write_tensors(folder, {name: tensor.detach().numpy() for name, tensor in draft.tensors.items()})
