"""A hub model's configuration and headers by HTTP range requests: everything but its weights, and nothing of them.

The way is huggingface_hub's own: its endpoint, token, proxies, offline mode and client. What it lacks is here: patience
with bounds. A request is tried again where that can help (too many requests, a fault of the server, a connection that
breaks off), waits no longer than `_patience` in all, gives up an answer that is longer than what was asked for, and
believes none that does not hold together. The token stays with the hub: the client drops it where the hub
sends one on to another host.

Of a file two ranges are read: 8 bytes, then the header that they announce. A guess at the header's length would save
a request and fetch weights.
"""

from __future__ import annotations

import email.utils
import re
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from halfbyte.checkpoint.files import JSON_LIMIT, parse_json
from halfbyte.checkpoint.headers import LIMIT, TensorInfo, broken, header_length, parse_header, shown
from halfbyte.checkpoint.hub import download, hub_error
from halfbyte.checkpoint.source import CONFIG, INDEX, SINGLE, Listing, list_files, open_folder
from halfbyte.errors import CheckpointError

_ATTEMPTS = 4
_PAUSE = 0.5  # seconds before the second attempt; doubled before each further one
_AT_ONCE = 8  # requests
_AGAIN = (408, 429, 500, 502, 503, 504)


def list_hub_model(model: str, revision: str | None = None) -> Listing:
    """The configuration and tensors of a hub model, without its weights; from the local cache where the hub is
    switched off (HF_HUB_OFFLINE) or can't be reached.

    Raises CheckpointError for a model that is not there, is not shown to this user, or is not read by halfbyte.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _cached(model, revision, "from the local cache: the hub is switched off")
    remote = Remote(model, revision)
    try:
        return _list(remote)
    except _Unreachable as error:
        try:
            return _cached(model, revision, "from the local cache: the hub can't be reached", local_only=True)
        except CheckpointError:
            raise error from None


def _cached(model: str, revision: str | None, note: str, *, local_only: bool = False) -> Listing:
    folder = download(model, revision, local_only=local_only)
    found = open_folder(folder, name=model).listing
    commit = folder.name if folder.parent.name == "snapshots" else None
    return Listing(model, found.files, found.config, found.tensors, found.weights, found.dtype, commit, (note,))


def _list(remote: Remote) -> Listing:
    try:
        config = remote.json(CONFIG)
    except _Missing as error:
        raise CheckpointError(
            "the hub shows no config.json of this model, or no such model",
            where=error.where,
            do="check the spelling; a model of the kind that is read here has config.json and safetensors files",
        ) from None
    try:
        found = list_files(remote, remote.model, sharded=False, config=config)
    except _Missing:
        try:
            found = list_files(remote, remote.model, sharded=True, config=config)
        except _Missing as error:
            raise _no_weights(remote, error) from None
    files = {stored.file: stored for stored in found.tensors.values()}
    size = sum(stored.nbytes for stored in found.tensors.values())
    note = f"{size:,} bytes of weights in {len(files)} file{'s' * (len(files) != 1)} on the hub; read were "
    note += f"{sum(remote.received):,} bytes, the configuration and the headers"
    return Listing(remote.model, remote, config, found.tensors, found.weights, found.dtype, remote.commit, (note,))


def _no_weights(remote: Remote, error: _Missing) -> CheckpointError:
    if error.where != remote.where(INDEX):
        return CheckpointError("a file that the index names is not on the hub", where=error.where,
                               do="ask whoever published the model to upload it")  # fmt: skip
    return CheckpointError(
        f"this hub model has neither {SINGLE} nor {INDEX}",
        where=remote.where(),
        do="choose a copy of the model in safetensors; an adapter is planned by its base model, GGUF and pickled "
        "weights are not read",
    )


class _Missing(CheckpointError):
    """The hub has the model, but not this file."""


class _Unreachable(CheckpointError):
    """No answer at all: what is in the cache may do."""


class _Again(Exception):
    """Another attempt may help; `error` is what to raise when there is none, `wait` what the server asked for."""

    def __init__(self, error: CheckpointError, wait: float | None = None) -> None:
        self.error, self.wait = error, wait


class Remote:
    """A repository of the hub as `Files`. After the first answer all files are of the commit that it named."""

    def __init__(self, model: str, revision: str | None) -> None:
        from huggingface_hub import constants

        self.model, self.revision = model, revision
        self.commit: str | None = None
        self.received: list[int] = []  # bytes, of each answer
        self._json: dict[str, dict[str, Any]] = {}
        self._timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds without a byte
        self._said = _hub_utilities().build_hf_headers()  # the token, and who asks
        self._patience = 3 * self._timeout  # seconds of one read, with all its attempts

    def where(self, name: str = "") -> str:
        from huggingface_hub import constants

        revision = self.commit or self.revision
        place = f"{self.model}@{revision}" if revision else self.model
        return f"{place}{': ' * bool(name)}{name} at {constants.ENDPOINT}"

    def json(self, name: str) -> dict[str, Any]:
        if name not in self._json:
            content, _ = self._get(name, 0, None)
            self._json[name] = parse_json(content, self.where(name))
        return self._json[name]

    def missing(self, names: Sequence[str]) -> list[str]:
        return []

    def headers(self, names: Sequence[str]) -> list[dict[str, TensorInfo]]:
        pool = ThreadPoolExecutor(min(_AT_ONCE, len(names)) or 1)
        try:
            return list(pool.map(self._header, names))
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, name: str, start: int, count: int) -> bytes:
        content, _ = self._get(name, start, count)
        if len(content) < count:
            raise broken(self.where(name), "the file ends before the place that its header names")
        return content

    def _header(self, name: str) -> dict[str, TensorInfo]:
        where = self.where(name)
        head, size = self._get(name, 0, 8)
        length = header_length(head, size, where)
        text, _ = self._get(name, 8, length)
        if len(text) < length:
            raise broken(where, f"a header of {length} bytes, of which the hub has {len(text)}: the file is cut")
        return parse_header(text, size, where)

    def _get(self, name: str, start: int, count: int | None) -> tuple[bytes, int | None]:
        """`count` bytes of a file from `start` (None: all of a small one; fewer, where it ends) and its size."""
        if count == 0:
            return b"", None
        deadline = time.monotonic() + self._patience
        for attempt in range(_ATTEMPTS):
            try:
                return self._try(name, start, count, deadline)
            except _Again as again:
                wait = _PAUSE * 2**attempt if again.wait is None else again.wait
                if attempt + 1 == _ATTEMPTS or time.monotonic() + wait > deadline:
                    raise again.error from None
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _try(self, name: str, start: int, count: int | None, deadline: float) -> tuple[bytes, int | None]:
        from huggingface_hub import hf_hub_url

        revision = self.commit or self.revision
        headers = {**self._said, "Accept-Encoding": "identity"}
        if count is not None:
            headers["Range"] = f"bytes={start}-{start + count - 1}"
        try:
            url = hf_hub_url(self.model, name, revision=revision)
            with _hub_utilities().get_session().stream("GET", url, headers=headers, timeout=self._timeout) as answer:
                return self._answer(answer, name, start, count, deadline)
        except (CheckpointError, _Again):
            raise
        except Exception as error:
            raise self._no_answer(error) from None

    def _no_answer(self, error: Exception) -> Exception:
        """A connection that fails, is silent, or breaks off; a redirection without end."""
        known = hub_error(self.model, self.revision, error)
        http = sys.modules[type(error).__module__.partition(".")[0]]  # httpx, or what huggingface_hub took after it
        if not isinstance(error, getattr(http, "TransportError", ())):
            return known
        if isinstance(error, (http.ConnectError, http.UnsupportedProtocol, http.ProxyError)):
            return _Unreachable(known.what, where=known.where, found=known.found, do=known.do)
        late = isinstance(error, http.TimeoutException)
        what = "the hub does not answer in time" if late else "the connection to the hub breaks off"
        found = f"no byte for {self._timeout} seconds" if late else shown(str(error), 200)
        return _Again(_Unreachable(what, where=known.where, found=found, do="check the network, or try again later"))

    def _answer(
        self, answer: Any, name: str, start: int, count: int | None, deadline: float
    ) -> tuple[bytes, int | None]:
        where = self.where(name)
        if answer.status_code == 416:
            raise broken(where, f"a file that ends before byte {start}")
        if answer.status_code not in (200, 206):
            raise self._refusal(answer, where)
        self._pin(answer)
        kind, coding = answer.headers.get("Content-Type", ""), answer.headers.get("Content-Encoding", "identity")
        if kind.startswith("text/html") or coding != "identity":
            raise _odd(where, f"{shown(kind)}, encoded as {shown(coding)}", "a proxy, or a login page of this network, "
                       "may answer in the hub's place")  # fmt: skip
        if answer.status_code == 206:
            skip, size = 0, _size(answer.headers, where, start, count)
        else:  # the whole file: as far as needed it is read, the rest is left
            skip, size = start, _number(answer.headers.get("Content-Length"))
            if skip > LIMIT:
                raise _odd(where, "a whole file where a part was asked for", "use a server that answers range requests")
        content = self._body(answer, skip, JSON_LIMIT + 1 if count is None else count, where, deadline)
        if count is not None and size is not None and len(content) < min(count, size - start):
            raise _Again(_Unreachable("the connection to the hub breaks off", where=where, do="try again later"))
        return content, size

    def _body(self, answer: Any, skip: int, count: int, where: str, deadline: float) -> bytes:
        """`count` bytes of the body after the first `skip`, and not one more than the chunk that completes them."""
        content = bytearray()
        for chunk in answer.iter_raw():
            dropped = min(skip, len(chunk))
            skip -= dropped
            content += chunk[dropped : dropped + count - len(content)]
            if len(content) >= count:
                break
            if time.monotonic() > deadline:
                found = f"{len(content):,} bytes in {self._patience} seconds"
                raise _Unreachable("the hub is too slow", where=where, found=found, do="try again later")
        self.received.append(len(content))
        return bytes(content)

    def _pin(self, answer: Any) -> None:
        for one in (*answer.history, answer):
            commit = one.headers.get("X-Repo-Commit", "")
            if self.commit is None and re.fullmatch(r"[0-9a-f]{40}", commit):
                self.commit = commit

    def _refusal(self, answer: Any, where: str) -> Exception:
        """What a status other than success means. The answer's body is not read."""
        from huggingface_hub import errors

        bare = type(answer)(answer.status_code, headers=_said(answer.headers), request=answer.request)
        try:
            _hub_utilities().hf_raise_for_status(bare)
        except errors.RemoteEntryNotFoundError:
            return _Missing("the hub has no such file", where=where)
        except Exception as error:
            known = hub_error(self.model, self.revision, error)
            if answer.status_code == 404 and not answer.headers.get("X-Error-Code"):
                return _Missing("the hub has no such file", where=where)
            if answer.status_code in _AGAIN:
                return _Again(known, _wait(answer.headers))
            return known
        return _odd(where, f"HTTP {answer.status_code}", "try later")


def _hub_utilities() -> Any:
    from huggingface_hub import utils

    return utils


def _said(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in ("X-Error-Code", "X-Error-Message", "X-Request-Id") if name in headers}


def _odd(where: object, found: str, do: str) -> CheckpointError:
    return CheckpointError("the hub answers with something else than was asked for", where=where, found=found, do=do)


def _size(headers: Mapping[str, str], where: str, start: int, count: int | None) -> int | None:
    """The file's size, if the answer holds the very bytes that were asked for."""
    said = headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", said.strip())
    if count is not None and match:
        first, last, size = int(match[1]), int(match[2]), _number(match[3])
        end = start + count if size is None else min(start + count, size)
        if first == start and last + 1 == end:
            return size
    asked = "no range" if count is None else f"bytes {start}-{start + count - 1}"
    raise _odd(where, f"Content-Range '{shown(said)}' for {asked}", "try later; a proxy between may be at fault")


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,19}", text) else None


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After, which is a number or a date."""
    said = headers.get("Retry-After", "")
    if (seconds := _number(said)) is not None:
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
