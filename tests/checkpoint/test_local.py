"""A mistyped folder is told as that, and not looked up on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.checkpoint import source
from halfbyte.checkpoint.hub import NotOnHub
from halfbyte.checkpoint.local import may_be_hub_id
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.plan.inventory import take_inventory


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a run in `runs/demo` and a model's folder in `meta-llama/Llama-3.2-1B`."""
    (folder / "runs" / "demo").mkdir(parents=True)
    (folder / "runs" / "demo" / "run.yaml").touch()
    (folder / "meta-llama" / "Llama-3.2-1B").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("meta-llama/Llama-3.2-3B", True), ("gpt2", True), ("org/model", True),
        ("runs/dmo", False), ("./runs/dmo", False), ("../x", False), ("/nowhere", False), ("a/b/c", False),
        ("~/x", False), ("runs/", False), ("a\\b", False), ("other.yaml", False), ("runs/other.yml", False),
    ],
)  # fmt: skip
def test_what_may_be_a_hub_id(name: str, hub: bool, here: Path) -> None:
    assert may_be_hub_id(name) == hub


def test_a_mistyped_run_never_reaches_the_hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "download", lambda *_: pytest.fail("the hub was asked"))
    for ask, kind in ((open_checkpoint, CheckpointError), (take_inventory, ConfigError)):
        with pytest.raises(kind) as caught:
            ask("runs/dmo")
        said = str(caught.value)
        assert said.startswith("there is no such folder\n  where: runs/dmo")
        assert "in runs, which holds demo;" in said and "no hub id" in said and "did you mean 'runs/demo'" in said
    for path, found in (("./nowhere/x", "of that name, nor nowhere;"), ("./runs/demo/x", "of that name; ")):
        with pytest.raises(CheckpointError, match=found):
            open_checkpoint(path)


def test_the_folder_of_an_owner_is_no_reason_not_to_ask(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Path:
        raise NotOnHub("the hub can't be reached")

    monkeypatch.setattr(source, "download", refused)
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        open_checkpoint("meta-llama/Llama-3.2-1b-x")
    assert "as a hub id: the hub can't be reached" in str(caught.value)
    assert "did you mean 'meta-llama/Llama-3.2-1B'" in str(caught.value)
    with pytest.raises(NotOnHub):
        open_checkpoint("org/model")
