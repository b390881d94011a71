"""A mistyped folder is told as that, and not looked up on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.checkpoint import remote, source
from halfbyte.checkpoint.hub import NotOnHub
from halfbyte.checkpoint.local import may_be_hub_id
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.pipeline import require_model
from halfbyte.plan.inventory import take_inventory


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a run in `runs/demo` and a model's folder in `meta-llama/Llama-3.2-1B`."""
    (folder / "runs" / "demo").mkdir(parents=True)
    (folder / "runs" / "demo" / "run.yaml").touch()
    (folder / "meta-llama" / "Llama-3.2-1B").mkdir(parents=True)
    (folder / "google" / "exp1" / "evaluations").mkdir(parents=True)
    (folder / "runs" / "other.yaml").touch()
    (folder / "demo.yaml").touch()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("meta-llama/Llama-3.2-3B", True), ("gpt2", True), ("org/model", True),
        ("runs/dmo", False), ("./runs/dmo", False), ("../x", False), ("/nowhere", False), ("a/b/c", False),
        ("~/x", False), ("runs/", False), ("a\\b", False), ("other.yaml", False), ("google/gemma-2-2b", False),
        ("runs/other.yml", False), ("else/runs/x", False),
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


def test_a_run_that_is_not_there_is_told_as_that(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not there are runs at all; and a word alone is no hub id of a run."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(source, "download", lambda *_: pytest.fail("the hub was asked"))
    for there in (False, True):
        with pytest.raises(CheckpointError, match="there is no such folder") as caught:
            open_checkpoint("runs/none")
        assert "start a run: halfbyte tune RUN.yaml" in str(caught.value)
        (folder / "runs" / "demo" / "evaluations").mkdir(parents=True, exist_ok=there)
    with pytest.raises(CheckpointError, match="can't be a hub id, which reads 'owner/name'") as caught:
        require_model("nope")
    assert "a model is a folder with config.json" in str(caught.value)


def test_the_folder_of_an_owner_is_no_reason_not_to_ask(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Path:
        raise NotOnHub("the hub can't be reached", where="the hub", found="no route", do="check the network")

    monkeypatch.setattr(source, "download", refused)
    with pytest.raises(NotOnHub, match="the hub can't be reached") as caught:
        open_checkpoint("meta-llama/Llama-3.2-1b-x")
    assert caught.value.where == "the hub"
    assert caught.value.found == "no route; no folder of that name in meta-llama, which holds Llama-3.2-1B"
    assert caught.value.do == "check the network; or did you mean 'meta-llama/Llama-3.2-1B'?"
    with pytest.raises(NotOnHub) as caught:
        open_checkpoint("gpt2")  # a single word is beside nothing
    assert caught.value.found == "no route"


def test_a_revision_asks_the_hub_even_beside_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> Path:
        raise NotOnHub("the hub was asked")

    monkeypatch.setattr(source, "download", asked)
    monkeypatch.setattr(remote, "list_hub_model", asked)
    for ask in (open_checkpoint, take_inventory):
        with pytest.raises((CheckpointError, ConfigError), match="since runs lie in google") as caught:
            ask("google/gemma-9-2b")
        assert "If the hub's model of that name is meant, name its revision, too: main" in str(caught.value)
        with pytest.raises(NotOnHub if ask is open_checkpoint else CheckpointError, match="the hub was asked"):
            ask("google/gemma-9-2b", "main")


def test_a_yaml_file_is_called_one(here: Path) -> None:
    for ask, kind in ((open_checkpoint, CheckpointError), (take_inventory, ConfigError)):
        for name, near in (("dmo.yaml", "demo.yaml"), ("runs/othr.yaml", "runs/other.yaml")):
            with pytest.raises(kind, match="there is no such file") as caught:
                ask(name)
            assert f"did you mean '{near}'?" in str(caught.value) and "hub" not in str(caught.value)
