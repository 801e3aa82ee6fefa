"""Model specifications, with a stand-in for huggingface_hub: nothing here touches a network."""

import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

from blockffn_mlc.errors import UserError
from blockffn_mlc.hub import resolve_model


class RepositoryNotFoundError(Exception):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class RevisionNotFoundError(Exception):
    pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A huggingface_hub that records calls and raises ``hub.failure`` if set."""
    hub, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    for kind in (RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError):
        setattr(errors, kind.__name__, kind)
    hub.calls, hub.failure = [], None

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None, ignore_patterns=None):
        hub.calls.append((repo_id, revision, allow_patterns, ignore_patterns))
        if hub.failure:
            raise hub.failure
        return str(tmp_path)

    hub.snapshot_download, hub.errors = snapshot_download, errors
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return hub


@pytest.mark.parametrize("spec", ["models/mine", "/abs/olute", "demo", ".", "org/repo", "C:\\models"])
def test_folder_is_passed_through(hub, spec):
    assert resolve_model(spec) == Path(spec)
    assert not hub.calls


@pytest.mark.parametrize("spec, repo, revision", [
    ("HF://SparseLLM/BlockFFN-3B-SFT", "SparseLLM/BlockFFN-3B-SFT", None),
    ("hf://org/re.po_1@v1.0", "org/re.po_1", "v1.0"), ("HF://org/repo@refs/pr/2", "org/repo", "refs/pr/2")])
def test_download(hub, tmp_path, spec, repo, revision):
    assert resolve_model(spec) == tmp_path
    (called_repo, called_revision, patterns, ignored), = hub.calls
    assert (called_repo, called_revision) == (repo, revision)
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
                 "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "tokenizer.model"):
        assert any(fnmatch(name, pattern) for pattern in patterns)
        assert not any(fnmatch(name, pattern) for pattern in ignored)
    for name in ("onnx/model.safetensors", "checkpoint-100/config.json", "tokenizer_tool.py"):
        assert any(fnmatch(name, pattern) for pattern in ignored)
    for name in ("modeling_minicpm.py", "training_args.bin", "optimizer.pt", "tf_model.h5"):
        assert not any(Path(name).match(pattern) for pattern in patterns)


@pytest.mark.parametrize("spec", ["HF://", "HF://repo", "HF://org/repo/more", "HF://org/repo@", "HF:///repo", "HF://../x",
                                  "HF://org/..", "HF://org/repo@-x", "HF://org/repo@../x", "HF://org/re po",
                                  "HF://org/repo\n", "https://huggingface.co/org/repo", "s3://bucket/x"])
def test_malformed(hub, spec):
    with pytest.raises(UserError, match="expected HF://org/repo"):
        resolve_model(spec)
    assert not hub.calls


@pytest.mark.parametrize("failure, words", [
    (RepositoryNotFoundError("401"), ["no repository 'org/repo'"]),
    (GatedRepoError("403"), ["gated", "hf auth login"]),
    (RevisionNotFoundError("404"), ["'org/repo'", "no revision 'v9'"]),
    (ConnectionError("no route to host\nmore"), ["no route to host", "resumes"]),
    (OSError(28, "No space left on device"), ["No space left", "resumes"])])
def test_failures(hub, failure, words):
    hub.failure = failure
    with pytest.raises(UserError) as caught:
        resolve_model("HF://org/repo@v9")
    for word in ["HF://org/repo@v9", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'blockffn-mlc\[hub\]'"):
        resolve_model("HF://org/repo")


def test_names_exist_in_the_real_library():
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub import errors

    assert issubclass(errors.GatedRepoError, errors.RepositoryNotFoundError)
    assert issubclass(errors.RevisionNotFoundError, Exception)
    assert callable(hub.snapshot_download)
