"""tokenizer.json made of a sentencepiece model gives sentencepiece's own ids and texts."""

import io
import json
import sys

import pytest
from building import build
from checkpoints import GQA, write_random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from blockffn_mlc import builder
from blockffn_mlc.chat_config import copy_tokenizer
from blockffn_mlc.errors import UserError
from blockffn_mlc.sentencepiece_model import tokenizer_from_sentencepiece
from blockffn_mlc.sources import DEMO_FOLDER
from runtime_py.tokenizer import Tokenizer

LINES = (DEMO_FOLDER / "heldout.txt").read_text(encoding="utf-8").splitlines()[:600]
OPTIONS = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
KINDS = {"bpe": OPTIONS | {"model_type": "bpe"}, "unigram": OPTIONS | {"model_type": "unigram"},
         "bpe without bytes, prefix": OPTIONS | {"model_type": "bpe", "byte_fallback": False,
                                                 "add_dummy_prefix": False},
         "unigram, NFKC": OPTIONS | {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc"}}


def library():
    return pytest.importorskip("sentencepiece", reason="no sentencepiece (pip install -e '.[test]')")


def trained(**options):
    model = io.BytesIO()
    library().SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, vocab_size=500,
                                   user_defined_symbols=["<用户>", "<AI>"], minloglevel=2, **options)
    return model.getvalue()


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """sentencepiece's own processor, and our tokenizer as a runtime loads it."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.model").write_bytes(trained(**KINDS[request.param]))
    tokenizer_from_sentencepiece(folder / "tokenizer.model").save(str(folder / "tokenizer.json"))
    return (library().SentencePieceProcessor(model_file=str(folder / "tokenizer.model")),
            Tokenizer.load(folder / "tokenizer.json"))


def test_texts_have_sentencepieces_ids(pair):
    theirs, ours = pair
    for text in [*LINES, "", " ", "  two  spaces ", "a\nb\t c", "Ünïcödé 漢字 🙂", "▁▁x", "ﬁ ①"]:
        assert ours.encode(text) == theirs.encode(text), text


def test_symbols_of_the_chat_format_are_tokens(pair):
    theirs, ours = pair
    text = "<用户>Who is it?<AI>It is I."
    assert ours.encode(text) == theirs.encode(text)
    assert {theirs.piece_to_id("<用户>"), theirs.piece_to_id("<AI>")} <= set(ours.encode(text))


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("ab etohnd.,:;THEGod \n漢é▁"), max_size=40))
def test_any_text_has_sentencepieces_ids(pair, text):
    theirs, ours = pair
    assert ours.encode(text) == theirs.encode(text)


def test_ids_have_sentencepieces_texts(pair):
    theirs, ours = pair
    for text in [*LINES[:100], "Ünïcödé 漢字 🙂"]:
        ids = [token for token in theirs.encode(text) if token != theirs.unk_id()]
        assert ours.decode(ids) == theirs.decode(ids)


def test_control_symbols_are_special(pair):
    theirs, ours = pair
    assert ours.encode("</s>") == [theirs.eos_id()] and ours.decode([theirs.bos_id(), theirs.eos_id()]) == ""


@pytest.mark.parametrize(("options", "field"), [
    ({"model_type": "word"}, "trainer_spec.model_type"),
    ({"remove_extra_whitespaces": True}, "normalizer_spec.remove_extra_whitespaces"),
    ({"treat_whitespace_as_suffix": True}, "trainer_spec.treat_whitespace_as_suffix")])
def test_settings_without_an_equal_are_refused_by_name(tmp_path, options, field):
    path = tmp_path / "tokenizer.model"
    options = {"byte_fallback": False} | options if "model_type" in options else options
    path.write_bytes(trained(**OPTIONS | options))
    with pytest.raises(UserError, match=f"tokenizer.model: field '{field}': expected .*transformers"):
        tokenizer_from_sentencepiece(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xff not a model"])
def test_damaged_models_are_refused(tmp_path, content):
    library()
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.model: not a sentencepiece model"):
        tokenizer_from_sentencepiece(tmp_path / "tokenizer.model")


def test_an_artifact_gets_a_tokenizer_made_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "write_libraries", lambda *_: {})
    write_random_checkpoint(tmp_path / "model", GQA)
    (tmp_path / "model" / "tokenizer.model").write_bytes(trained(**KINDS["bpe"]))
    build("--model", tmp_path / "model", "-o", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "mlc-chat-config.json").read_text())
    assert config["tokenizer_files"] == ["tokenizer.json", "tokenizer.model"]
    assert config["tokenizer_info"] == {"token_postproc_method": "byte_fallback", "prepend_space_in_encode": True,
                                        "strip_space_in_decode": True}
    assert Tokenizer.load(tmp_path / "out" / "tokenizer.json").encode("<AI>")[-1] == 4


def test_without_the_library_one_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    write_random_checkpoint(tmp_path / "model", GQA)
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"")
    result = build("--model", tmp_path / "model", "--dry-run", check=False)
    assert result.returncode == 1 and "pip install 'blockffn-mlc[sentencepiece]'" in result.stderr


def test_a_tokenizer_of_its_own_is_kept(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / "in" / name).write_text(name)
    copy_tokenizer(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "tokenizer.json"
