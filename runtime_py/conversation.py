"""A conversation: turns, and one session whose cache is kept from turn to turn."""

from __future__ import annotations

from blockffn_mlc.errors import UserError

from .drafters import Drafter
from .engine import Engine
from .generation import Generation
from .sampling import Sampling
from .template import Turn, load_template
from .tokenizer import StreamDecoder


class PromptTooLong(UserError):
    """The conversation leaves no room for an answer; ``tokens``: its length."""

    def __init__(self, tokens: int, window: int) -> None:
        super().__init__(f"{tokens} tokens of conversation and an answer do not fit into the context window of "
                         f"{window} tokens; forget the conversation (/reset), or ask something shorter")
        self.tokens = tokens


class Conversation:
    """Questions and answers. Each turn feeds only what the cache does not hold yet."""

    def __init__(self, engine: Engine, draft: str | Drafter = "auto", tree_size: int | None = None, *,
                 dense: bool = False) -> None:
        """``draft``, ``tree_size``: see ``Engine.generate``; ``dense``: see ``Engine.session``. Raises UserError when
        the artifact has no tokenizer or no usable template, or cannot draft so."""
        if not engine.has_tokenizer:
            raise UserError(f"{engine.artifact.path}: this artifact has no tokenizer, which a conversation needs")
        self._engine = engine
        self._template = load_template(engine.artifact, engine.tokenizer)
        self.session = engine.session(dense=dense)
        drafter, self._controller = engine.drafting(draft, tree_size, dense=dense)
        self.session.attach(drafter)
        self.turns: list[Turn] = []
        self._generation: Generation | None = None

    def ask(self, question: str, sampling: Sampling, max_tokens: int | None = None) -> Generation:
        """Start answering; iterate the result. An answer that is broken off counts as far as it came.
        ``max_tokens`` is lowered to the room that is left. Raises PromptTooLong, and forgets the question, when the
        conversation itself does not fit."""
        self._settle()
        turn = Turn(question)
        ids = self._template.render([*self.turns, turn])
        window = self._engine.artifact.context_window_size
        if len(ids) >= window:
            raise PromptTooLong(len(ids), window)
        cached = self.session.reuse(ids)
        generation = Generation(self.session, ids[cached:], sampling, stop_ids=self._template.stop_ids,
                                max_tokens=max_tokens and min(max_tokens, window - len(ids)),
                                decoder=StreamDecoder(self._engine.tokenizer), controller=self._controller)
        self.turns.append(turn)
        self._generation = generation
        return generation

    def reset(self) -> None:
        """Forget all turns."""
        self._settle()
        self._generation = None
        self.turns.clear()
        self.session.rollback(0)

    def _settle(self) -> None:
        if self._generation is not None:
            self._generation.close()
            self.turns[-1].reply, self.turns[-1].reply_ids = self._generation.text, self._generation.ids
