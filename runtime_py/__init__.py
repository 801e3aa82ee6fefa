"""Run compiled BlockFFN artifacts: generate, score, inspect and chat, without torch or a toolchain.

    from runtime_py import Engine, Sampling

    engine = Engine.load("dist/demo-q0f32-cpu")
    for token in engine.generate("In the beginning", max_tokens=32):
        print(token.text, end="", flush=True)
"""

from .drafters import Drafter
from .engine import Engine, Score
from .generation import Generation, Token
from .sampling import GREEDY, Sampling
from .session import Output, Session
from .tree import Tree, TreeShape

__all__ = ["GREEDY", "Drafter", "Engine", "Generation", "Output", "Sampling", "Score", "Session", "Token", "Tree",
           "TreeShape"]
