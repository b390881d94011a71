"""What ends the command line, and what the other processes of a run end with, is one number."""

from __future__ import annotations

import argparse
import atexit
import os
from pathlib import Path

import pytest
import torch.distributed as dist

from halfbyte import cli
from halfbyte.errors import ConfigError, DataError, DoesNotFit, exit_code_of
from halfbyte.tune.ranks import Joined


@pytest.mark.parametrize(("error", "code"), [
    (DataError("d"), 1), (ConfigError("c"), 2), (DoesNotFit("f"), 3), (KeyboardInterrupt(), 130),
    (BrokenPipeError(), 0), (OSError(28, "No space left"), 1), (ValueError("v"), 1),
])  # fmt: skip
def test_an_error_has_one_exit_code(
    error: BaseException, code: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(_: argparse.Namespace) -> int:
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(handler=handler, debug=False)
    monkeypatch.setattr(cli, "make_parser", lambda: parser)
    with monkeypatch.context() as patched:
        patched.setattr(os, "dup2", lambda *_: None)  # the tests' own output stays open
        assert cli.main([]) == exit_code_of(error) == code

    one = object.__new__(Joined)
    one.rank, one._store, one._control = 0, dist.FileStore(str(folder / "store"), 2), None
    monkeypatch.setattr(atexit, "register", lambda *_: None)  # there is nobody to wait for
    one.leave(error)
    assert one._store.get("end") == f"0 {code}".encode()
