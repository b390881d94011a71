"""Fetching a model from the hub, through huggingface_hub: its cache, its token, its offline mode, its resumption.

Only what is read here is fetched: configuration, safetensors and tokenizer files of the repository's top folder.
"""

from __future__ import annotations

import errno
from pathlib import Path

from halfbyte.errors import CheckpointError

_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*", "LICENSE*", "NOTICE*", "README.md"]
_UNWANTED = ["*/*", "consolidated*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]


class NotOnHub(CheckpointError):
    """The hub shows no such model, or can't be asked."""


def download(model: str, revision: str | None, *, local_only: bool = False) -> Path:
    """The local folder of a hub model, fetched if it is not there (`local_only`: never). Raises CheckpointError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                local_files_only=local_only,
                allow_patterns=_WANTED,
                ignore_patterns=_UNWANTED,
            )
        )
    except Exception as error:
        raise hub_error(model, revision, error) from None


def hub_error(model: str, revision: str | None, error: Exception) -> CheckpointError:
    """The exceptions of huggingface_hub, in words that say what to do."""
    from huggingface_hub import constants, errors

    where = f"{model}@{revision}" if revision else model
    where += f" at {constants.ENDPOINT}"
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
    no_folder = f"there is no folder '{model}' here either"
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
        return CheckpointError(
            "the disk is full: the model can't be downloaded",
            where=constants.HF_HUB_CACHE,
            do="free some space, or set HF_HOME to a folder on another disk; the download goes on where it stopped",
        )
    if isinstance(error, PermissionError):
        return CheckpointError(
            "the cache of the hub can't be written",
            where=constants.HF_HUB_CACHE,
            found=error.strerror,
            do="set HF_HOME to a folder that can be written",
        )
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            "this model is gated", where=where, do=f"accept its terms on its page on the hub, then {login}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            "the hub has this model, but not this revision", where=where, do="name a branch, a tag or a full commit"
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return NotOnHub(
            "there is no such folder, and the hub shows no such model",
            where=where,
            found=no_folder,
            do=f"check the spelling; if the model is private or gated, {login}",
        )
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes) or constants.HF_HUB_OFFLINE:
        return NotOnHub(
            "this model is not (completely) in the local cache, and the hub is switched off",
            where=f"{where}; cache {constants.HF_HUB_CACHE}",
            found=f"HF_HUB_OFFLINE is set; {no_folder}",
            do="unset HF_HUB_OFFLINE to download the model once",
        )
    status = next((c.response.status_code for c in causes if isinstance(c, errors.HfHubHTTPError)), None)
    if status in (401, 403):
        do = f"if the model is gated, accept its terms on its page on the hub; {login}"
        return CheckpointError("the hub refuses access to this model", where=where, found=f"HTTP {status}", do=do)
    if status == 429:
        do = "wait some minutes; HF_TOKEN, if it is not set, raises what the hub allows"
        return CheckpointError("the hub has had too many requests from here", where=where, found="HTTP 429", do=do)
    if status is not None:
        return CheckpointError("the hub answers with an error", where=where, found=f"HTTP {status}", do="try later")
    last = str(causes[-1]) or type(causes[-1]).__name__
    return NotOnHub(
        "the hub can't be reached",
        where=where,
        found=f"{last.splitlines()[0][:200]}; {no_folder}",
        do="check the network (and HF_ENDPOINT, HTTPS_PROXY); what was downloaded is kept",
    )
