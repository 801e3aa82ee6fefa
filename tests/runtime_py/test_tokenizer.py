"""Streamed text is whole characters, and together exactly what decoding everything gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders
from toy import byte_fallback_tokenizer, byte_level_tokenizer

from blockffn_mlc.errors import UserError
from runtime_py.tokenizer import StreamDecoder, Tokenizer

TOKENIZERS = {"byte_level": Tokenizer(byte_level_tokenizer()), "byte_fallback": Tokenizer(byte_fallback_tokenizer())}
both = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def stream(tokenizer, ids, context=()):
    decoder = StreamDecoder(tokenizer, context)
    pieces = [decoder.push(token) for token in ids]
    return [*pieces, decoder.finish()]


@both
@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 262), max_size=40))
def test_any_tokens_stream_to_their_full_decoding(tokenizer, ids):
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def pairs_of_spaces():
    return decoders.Replace("  ", " ")


@pytest.mark.parametrize(("decoder", "joins"), [
    (decoders.WordPiece(cleanup=True), False), (decoders.Strip(" ", 0, 1), False),
    (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)]), True),
    (decoders.Sequence([decoders.Replace("\u0120", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]), True),
    (decoders.Sequence([decoders.Replace("\u0120", " "), decoders.Fuse(), pairs_of_spaces()]), False),
    (decoders.Sequence([decoders.Replace("\u0120", " "), pairs_of_spaces(), decoders.Fuse()]), True),
    (decoders.Sequence([decoders.ByteLevel(), pairs_of_spaces()]), False),
    (decoders.Sequence([decoders.Fuse(), decoders.ByteLevel()]), False)], ids=str)
def test_decoders_that_change_spaces_between_tokens(decoder, joins):
    """A suffix belongs to the word before it, and spaces before punctuation go: text depends on its neighbours."""
    backend = byte_level_tokenizer()
    backend.decoder = decoder
    words = [backend.token_to_id(word) for word in ("the", "\u0120", "\u0120the", "in", "ing", "e")]
    rng = np.random.default_rng(0)
    for _ in range(50):
        tokenizer = Tokenizer(backend)
        assert tokenizer.joins == joins
        ids = rng.choice(words, 40).tolist()
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)
        assert bool(tokenizer.pieces) == joins


@both
@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30))
def test_no_piece_ends_inside_a_character(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == tokenizer.decode(ids)


@both
@settings(deadline=None, max_examples=200)
@given(text=st.text("the ing \u4e16\u754c\U0001f600\u00e9 ", max_size=20), cut=st.integers(1, 20))
def test_a_context_supplies_the_spacing(tokenizer, text, cut):
    ids = tokenizer.encode("x " + text)
    head = ids[:cut]
    if tokenizer.decode(head).endswith("\ufffd") or tokenizer.is_byte(head[-1]):
        return  # a prompt that ends inside a character
    assert tokenizer.decode(head) + "".join(stream(tokenizer, ids[cut:], head)) == tokenizer.decode(ids)


def test_characters_appear_as_soon_as_they_are_whole():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode("the\u4e16e")
    pieces = stream(tokenizer, ids)
    assert [piece for piece in pieces if piece] == ["the", "\u4e16", "e"]


def test_an_unfinished_character_comes_out_as_a_replacement_at_the_end():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode("e\U0001f600")[:-1]
    assert stream(tokenizer, ids)[-1] == "\ufffd"


def test_special_tokens_are_parsed_and_not_printed():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode("e</s>e")
    assert 2 in ids and tokenizer.decode(ids) == "ee"


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path):
    backend = byte_level_tokenizer()
    expected = backend.encode("the ing the").ids
    for change in (lambda: backend.enable_truncation(2), lambda: backend.enable_padding(length=20)):
        change()
        backend.save(str(tmp_path / "tokenizer.json"))
        assert Tokenizer.load(tmp_path / "tokenizer.json").encode("the ing the") == expected
        backend.no_truncation()


@pytest.mark.parametrize(("kind", "text", "labels"), [
    ("byte_level", "e the\n</s>", ["e", "\u2581the", "\u23ce", "</s>"]),
    ("byte_level", "\u754c", ["\u00e7", "\u0137", "\u012e"]),
    ("byte_fallback", "a th\u4e16", ["\u2581", "a", "\u2581th", "<0xE4>", "<0xB8>", "<0x96>"])])
def test_labels_are_readable(kind, text, labels):
    tokenizer = TOKENIZERS[kind]
    assert [tokenizer.label(token) for token in tokenizer.encode(text)] == labels
    assert tokenizer.label(100000) == "<100000>"


def test_labels_hold_no_control_characters():
    tokenizer = TOKENIZERS["byte_level"]
    assert [tokenizer.label(token) for token in tokenizer.encode("\x1b\r")] == ["\\x1b", "\\r"]


@pytest.mark.parametrize(("content", "message"), [(None, "has no tokenizer"), ("{}", "not a usable tokenizer"),
                                                  ("\x00", "not a usable tokenizer")])
def test_missing_and_damaged_files_are_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(path)
