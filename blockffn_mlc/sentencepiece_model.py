"""A sentencepiece model (``tokenizer.model``) as the tokenizer that runtimes read (``tokenizer.json``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from .errors import UserError

FILE = "tokenizer.model"
_EXTRA = "sentencepiece"  # of this package
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type
_SPACE = "\u2581"


def tokenizer_from_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer in ``path``: the same ids as sentencepiece gives, but control symbols written in a text become
    their ids, as in every ``tokenizer.json``. Raises UserError: without sentencepiece, for a damaged file, and for the
    settings that the tokenizers library has no equal for."""
    model = _read(path)
    trainer, rules = model.trainer_spec, model.normalizer_spec
    for field, ok, expected in (
            ("trainer_spec.model_type", trainer.model_type in (_UNIGRAM, _BPE), "unigram or BPE"),
            ("trainer_spec.treat_whitespace_as_suffix", not trainer.treat_whitespace_as_suffix, "false"),
            ("normalizer_spec.remove_extra_whitespaces", not rules.remove_extra_whitespaces, "false"),
            ("normalizer_spec.escape_whitespaces", rules.escape_whitespaces, "true")):
        if not ok:
            raise UserError(f"{path}: field {field!r}: expected {expected}, found another setting; make tokenizer.json "
                            "with the transformers library and put it beside")
    tokenizer = Tokenizer(_bpe(model) if trainer.model_type == _BPE else _unigram(model))
    tokenizer.normalizer = normalizers.Sequence([
        *([normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []),
        *([normalizers.Prepend(_SPACE)] if rules.add_dummy_prefix else []), normalizers.Replace(" ", _SPACE)])
    # As added tokens they would be cut out of the text before it is normalised, and every rest get a prefix.
    symbols = sorted((piece.piece for piece in model.pieces if piece.type == _USER_DEFINED), key=len, reverse=True)
    if symbols:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, symbols))), "isolated")
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace(_SPACE, " "), *([decoders.ByteFallback()] if trainer.byte_fallback else []), decoders.Fuse(),
        *([decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else [])])
    tokenizer.add_special_tokens([AddedToken(piece.piece, normalized=False) for piece in model.pieces
                                  if piece.type in (_UNKNOWN, _CONTROL)])
    return tokenizer


def _read(path: Path) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(f"{path}: making tokenizer.json from it needs the extra {_EXTRA!r} ({error}): pip install "
                        f"'blockffn-mlc[{_EXTRA}]', or put a tokenizer.json beside it") from None
    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError; OSError
        raise UserError(f"{path}: not a sentencepiece model ({error}); copy it again") from None
    if not 0 <= model.trainer_spec.unk_id < len(model.pieces):
        raise UserError(f"{path}: not a sentencepiece model (it has {len(model.pieces)} pieces and no unknown one); "
                        "copy it again")
    return model


def _unigram(model: Any) -> models.Unigram:
    return models.Unigram([(piece.piece, piece.score) for piece in model.pieces], model.trainer_spec.unk_id,
                          byte_fallback=model.trainer_spec.byte_fallback)


def _bpe(model: Any) -> models.BPE:
    """sentencepiece joins the neighbours whose piece has the highest score; ``tokenizers`` takes the pairs in that
    order. ``ignore_merges``: a symbol that is split off by itself is in the vocabulary, not made of pairs."""
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    whole = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    merges = sorted((-score, ids[left], ids[right], left, right) for text, score in whole.items()
                    for at in range(1, len(text)) for left, right in [(text[:at], text[at:])]
                    if left in whole and right in whole)
    return models.BPE(ids, [tuple(merge[3:]) for merge in merges], fuse_unk=True, ignore_merges=True,
                      unk_token=model.pieces[model.trainer_spec.unk_id].piece,
                      byte_fallback=model.trainer_spec.byte_fallback)
