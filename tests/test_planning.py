"""`plan RUN.yaml` foretells what `tune` chooses, on real runs of small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from halfbyte.cli import main
from tests.stories import stories
from tests.test_cli import task_files
from tests.tiny import tiny_checkpoint

GIVEN = ("sequence", "batch", "recompute", "evaluation_batch", "evaluation_sequence", "dtype_bytes")


def planned(capsys: pytest.CaptureFixture[str], run_yaml: Path, *more: str) -> dict[str, Any]:
    capsys.readouterr()
    main(["plan", str(run_yaml), "--json", *more])
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"tiny": tiny_checkpoint("llama", folder / "tiny"), "stories": stories(folder / "stories")}


@pytest.mark.parametrize(
    ("model", "changes", "room", "batch", "recompute"),
    [
        ("tiny", {}, None, range(16, 17), range(1)),
        ("stories", {"tune": "{max_steps: 1, batch: 12, micro_batch: 5}"}, None, range(5, 6), range(1)),
        ("tiny", {}, (16, 0.6), range(2, 9), range(1)),
        ("tiny", {"adapter": "{targets: attention, rank: 4}"}, (1, 0.9), range(1, 2), range(1, 3)),
    ],
)
def test_what_tune_chooses_was_foretold(
    model: str, changes: dict[str, str], room: tuple[int, float] | None, batch: range, recompute: range,
    models: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """`room`: memory for a share of the activations of so many items, nothing recomputed."""
    changes = {"tune": "{max_steps: 1, batch: 16}"} | changes
    run_yaml = task_files(folder, models[model], memory="8GB", **changes)
    if room is not None:
        whole, some = (planned(capsys, run_yaml, "--batch", str(n))["phases"]["tune"] for n in (16, room[0]))
        wanted = [one["parts"]["activations"] + one["parts"]["logits"] for one in (whole, some)]
        size = whole["peak_bytes"] + whole["mapped_bytes"] - wanted[0] + int(room[1] * wanted[1])
        run_yaml = task_files(folder, models[model], memory=f"{size}B", **changes)
    plan = planned(capsys, run_yaml)
    assert plan["settings"]["batch"] in batch and plan["settings"]["recompute"] in recompute
    force = ["--force"] if set(plan["fit"]["advice"]) == {"evaluate"} else []  # one item's room is none for 16 answers
    assert main(["tune", str(run_yaml), *force]) == 0
    said, made = " ".join(capsys.readouterr().out.split()), json.loads((folder / "out" / "plan.json").read_text())
    assert {key: plan["settings"][key] for key in GIVEN} == {key: made["settings"][key] for key in GIVEN}
    assert plan["phases"]["tune"]["parts"] == made["phases"]["tune"]["parts"]
    choice = next(reason for reason in plan["reasons"] if reason.startswith("micro-batch"))
    assert choice in said and choice in made["reasons"]


def test_answers_that_have_no_room_are_refused(
    models: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_room(size: int) -> Path:
        return task_files(folder, models["tiny"], tune="{max_steps: 1, micro_batch: 1}", memory=f"{size}B")

    phases = planned(capsys, with_room(8 * 10**9))["phases"]
    needs = {name: phases[name]["peak_bytes"] for name in ("tune", "evaluate")}
    assert needs["tune"] < needs["evaluate"]
    run_yaml = with_room(needs["evaluate"] - 1)
    assert main(["plan", str(run_yaml)]) == 3
    assert main(["tune", str(run_yaml)]) == 3 and not (folder / "out").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "the evaluation does not fit" in said and "fit at once" in said and "--force" in said
    assert main(["tune", str(run_yaml), "--force"]) == 0
    assert main(["tune", str(run_yaml), "--resume"]) == 0  # what was begun goes on
    assert main(["tune", str(with_room(phases["evaluate"]["peak_bytes"] + phases["evaluate"]["mapped_bytes"])),
                 "--set", f"out={folder / 'other'}"]) == 0  # fmt: skip


def test_data_that_are_not_here_leave_max_tokens(
    models: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for train, why in (("org/data", "the data are not here"), ("train.jsonl", "the data can't be read")):
        run_yaml = task_files(folder, models["tiny"], data=f"{{train: {train}, max_tokens: 99}}", memory="8GB")
        (folder / "train.jsonl").write_text("no json\n")
        plan = planned(capsys, run_yaml)
        assert plan["settings"]["sequence"] == 99 and why in plan["reasons"][-1]
        assert any(why in note and "halfbyte check" in note for note in plan["notes"])


def test_a_task_whose_data_are_not_here_is_said(
    models: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_yaml = task_files(folder, models["tiny"], memory="8GB")
    assert not [note for note in planned(capsys, run_yaml)["notes"] if "evaluation" in note]
    task = folder / "task.yaml"
    data = Path(yaml.safe_load(task.read_text())["data"])
    (data if data.is_absolute() else folder / data).unlink()
    (note,) = [note for note in planned(capsys, run_yaml)["notes"] if "evaluation" in note]
    assert "the data are not here" in note and data.name in note


def test_what_is_packed_and_why_is_said_and_written(
    models: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As chosen, as asked, where there is nothing to pack, and where it can't be."""
    for number, (tune, packing, said) in enumerate((
        ("{max_steps: 1, micro_batch: 4}", "on", "packing on: the items of a micro-batch stand in one row"),
        ("{max_steps: 1, micro_batch: 4, packing: off}", "off", "packing off: as asked"),
        ("{max_steps: 1, micro_batch: 1}", "off", "packing off: one item at a time has no padding"),
    )):  # fmt: skip
        run_yaml = task_files(folder, models["tiny"], memory="8GB", tune=tune, out=f"run{number}")
        assert main(["tune", str(run_yaml)]) == 0
        assert said in " ".join(capsys.readouterr().out.split())
        written = yaml.safe_load((folder / f"run{number}" / "run.yaml").read_text())
        assert written["tune"]["packing"] == packing
    monkeypatch.setattr("halfbyte.model.packing.find_way", lambda model: ("", "its attention has sinks"))
    run_yaml = task_files(folder, models["tiny"], memory="8GB", tune="{micro_batch: 4, max_steps: 1}", out="padded")
    assert main(["tune", str(run_yaml)]) == 0
    assert "packing off: items are padded, since its attention has sinks" in " ".join(capsys.readouterr().out.split())
    assert main(["tune", str(run_yaml), "--set", "out=other", "--set", "tune.packing=on"]) == 2
    said = capsys.readouterr().err
    assert "can't be packed" in said and "tune.packing" in said and "sinks" in said
    assert not (folder / "other").exists()
    one = ["--set", f"out={folder / 'one'}", "--set", "tune.packing=on", "--set", "tune.micro_batch=1"]
    assert main(["tune", str(run_yaml), *one]) == 0  # nothing is packed then, so nothing has to be able to
    capsys.readouterr()
    assert main(["tune", str(folder / "run0" / "run.yaml"), "--resume"]) == 0  # begun where it could be packed
    said = " ".join(capsys.readouterr().out.split())
    assert "packing off here: items are padded until the run goes on elsewhere, since its attention has sinks" in said
    assert yaml.safe_load((folder / "run0" / "run.yaml").read_text())["tune"]["packing"] == "on"
