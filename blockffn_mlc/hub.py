"""Where a model comes from: a local folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import UserError

_SPEC = re.compile(r"HF://(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII | re.IGNORECASE)
# Only what a build reads: no code, no other framework's weights.
_PATTERNS = ["*.json", "*.safetensors", "pytorch_model*.bin", "tokenizer*"]
_IGNORED = ["*/*", "*.py"]  # a pattern's * matches slashes too


def resolve_model(spec: str) -> Path:
    """The local folder of a model. ``HF://org/repo[@revision]`` is downloaded into the hub's cache (an interrupted
    download resumes, a complete one needs no network); anything else is a path, passed through.

    Raises UserError for a malformed spec, an unknown repository or revision, no network, or without the ``hub``
    extra.
    """
    if "://" not in spec:
        return Path(spec)
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UserError(f"model {spec!r}: expected HF://org/repo, HF://org/repo@revision or a folder")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        raise UserError(f"model {spec!r}: downloading needs huggingface_hub, which is not installed; "
                        "run: pip install 'blockffn-mlc[hub]'") from None
    repo, revision = match["repo"], match["revision"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_PATTERNS,
                                      ignore_patterns=_IGNORED))
    except GatedRepoError:
        raise UserError(f"model {spec!r}: repository {repo!r} is gated; accept its terms on its page, "
                        "then log in with: hf auth login") from None
    except RepositoryNotFoundError:
        raise UserError(f"model {spec!r}: no repository {repo!r} on the Hugging Face hub, or it is private; "
                        "check the name, or log in with: hf auth login") from None
    except RevisionNotFoundError:
        raise UserError(f"model {spec!r}: repository {repo!r} has no revision {revision!r}; "
                        "expected a branch, tag or commit of it") from None
    except Exception as error:  # noqa: BLE001 - network libraries and disks fail in many ways
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"model {spec!r}: the download failed ({reason}); check the network and the free disk space, "
                        "then run the same command again: it resumes") from None
