"""Folders of runs and evaluations that are none, broken, or of something else."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bad_inputs.case import TUNE, Case, Make, Place, nothing, text

_RESUME = "tune {folder}/out/run.yaml --resume"
_COMPARE = "compare {folder}/out/evaluations/base-nf4 {folder}/out/evaluations/tuned"
_RESULT, _PREDICTIONS = "out/evaluations/tuned/result.json", "out/evaluations/tuned/predictions.jsonl"


def _run(place: Place) -> Path:
    """A copy of the finished run, that calls itself so."""
    folder = place.copy("out")
    place.edit("out/run.yaml", f"out: {place.made / 'out'}", f"out: {folder}")
    return folder


def _broken(name: str, content: str | bytes | None) -> Make:
    """A copy of the run in which a file is another, or (None) gone."""

    def make(place: Place) -> None:
        _run(place)
        place.replace(f"out/{name}", content)

    return make


def _result(**values: object) -> Make:
    def make(place: Place) -> None:
        _run(place)
        place.change(_RESULT, **values)

    return make


def _predictions(change: str) -> Make:
    def make(place: Place) -> None:
        _run(place)
        lines = place.lines(_PREDICTIONS)
        first = json.loads(lines[0])
        if change == "torn":
            lines[3] = lines[3][:20]
        elif change == "fewer":
            lines.pop()
        elif change == "no scores":
            lines[0] = json.dumps(first | {"scores": {}})
        elif change == "texts":
            lines[0] = json.dumps(first | {"scores": dict.fromkeys(first["scores"], "good")})
        else:
            lines[0] = json.dumps(first | {"id": change})
        place.write(_PREDICTIONS, "\n".join(lines) + "\n")

    return make


def _other_experiment(place: Place) -> None:
    _run(place)
    result = json.loads((place.folder / _RESULT).read_text())
    result["fingerprint_parts"]["decoding"]["max_new_tokens"] = 99
    place.change(_RESULT, fingerprint="0" * 64, fingerprint_parts=result["fingerprint_parts"])


def _half_written(place: Place) -> None:
    for folder in (_run(place) / "checkpoints").iterdir():
        file = folder / "state.safetensors"
        file.write_bytes(file.read_bytes()[:100])


def _changed_options(place: Place) -> None:
    _run(place)
    place.edit("out/run.yaml", "learning_rate: 0.0002", "learning_rate: 0.1")
    place.write("again.yaml", (place.folder / "out" / "run.yaml").read_bytes())
    place.edit("out/run.yaml", "learning_rate: 0.1", "learning_rate: 0.0002")


def _changed_data(place: Place) -> None:
    _run(place)
    place.edit("out/run.yaml", f"train: {place.made / 'train.jsonl'}", f"train: {place.folder / 'train.jsonl'}")
    place.edit("train.jsonl", "set 0", "set 99")


def _no_adapter(place: Place) -> None:
    (_run(place) / "adapter" / "adapter_config.json").unlink()


CASES = [
    Case("a data file in place of a run", nothing, "report {folder}/train.jsonl", 2, "no valid YAML", "names the file"),
    Case("a folder without a run", nothing, "verify {folder}/nowhere", 2, "this is no run", "says how to start one"),
    Case("a run's options without a run", nothing, "report {folder}/run.yaml", 2, "no such folder",
         "says how to start it"),
    Case("resuming what was never begun", nothing, TUNE + " --resume", 2, "no run to go on with",
         "says how to start it"),
    Case("starting a run where one lies", _run, "tune {folder}/out/run.yaml", 2, "holds a run already",
         "nothing of it is changed"),
    Case("resuming with other options", _changed_options, "tune {folder}/again.yaml --resume", 2,
         "learning_rate: 0.0002 -> 0.1", "lists every option that differs"),
    Case("resuming on other data", _changed_data, _RESUME, 2, "the data: the items",
         "refused, since nothing would be comparable"),
    Case("checkpoints that were written half", _half_written, _RESUME, 1, "no checkpoint can be read",
         "an older one is taken where one is whole"),
    Case("a run whose run.yaml is broken", _broken("run.yaml", "model: ["), "generate {folder}/out hi", 2,
         "no valid YAML", "names the file"),
    Case("a run without an adapter", _no_adapter, "generate {folder}/out hi", 1, "no adapter yet",
         "says how to finish it"),
    Case("measured.json that is broken", _broken("measured.json", "{"), "plan --check {folder}/out", 1,
         "measured.json can't be read",
         "names the file"),
    Case("plan.json that is missing", _broken("plan.json", None), "plan --check {folder}/out", 1,
         "the run has no plan.json",
         "says how it comes about"),
    Case("a result that is no JSON", _broken("evaluations/tuned/result.json", "{"), _COMPARE, 1, "result is broken",
         "asks to evaluate again"),
    Case("a result that is a list", _broken("evaluations/tuned/result.json", "[]"), _COMPARE, 1,
         "no schema, task, fingerprint",
         "asks to evaluate again"),
    Case("a result of another schema", _result(schema=99), _COMPARE, 1, "schema 99", "shows which one is read"),
    Case("a result whose metrics are no object", _result(metrics=[1]), _COMPARE, 1, "metrics: of another type",
         "asks to evaluate again"),
    Case("a result whose parts are no object", _result(fingerprint_parts="x"), _COMPARE, 1,
         "fingerprint_parts: of another type",
         "asks to evaluate again"),
    Case("a result without its predictions", _broken("evaluations/tuned/predictions.jsonl", None), _COMPARE, 1,
         "predictions are missing", "asks to evaluate again"),
    Case("predictions that are no text", _broken("evaluations/tuned/predictions.jsonl", b"\xff\xfe\x00"), _COMPARE, 1,
         "the predictions can't be read", "asks to evaluate again"),
    Case("a torn line of predictions", _predictions("torn"), _COMPARE, 1, "predictions.jsonl:4", "names the line"),
    Case("fewer predictions than items", _predictions("fewer"), _COMPARE, 1, "don't belong together",
         "shows both numbers"),
    Case("a prediction without its scores", _predictions("no scores"), _COMPARE, 1,
         "others than those of the first line",
         "names the first line whose scores are others"),
    Case("scores that are no numbers", _predictions("texts"), _COMPARE, 1, "predictions.jsonl:1", "names the line"),
    Case("results that hold other items", _predictions("another"), _COMPARE, 1, "don't hold the same items",
         "names the items"),
    Case("results of two experiments", _other_experiment, _COMPARE, 2, "max_new_tokens: 4 against 99",
         "each field that differs, with both values"),
    Case("an evaluation over another one's result", _other_experiment,
         "evaluate {folder}/out --task {folder}/task.yaml --variant tuned", 2, "holds a result",
         "the old result is not changed"),
    Case("a comparison with a folder that is no evaluation", nothing, "compare {run}/evaluations/tuned {folder}", 1,
         "the folder holds no evaluation", "says how to make one"),
    Case("results of a task that is not there", nothing, "results {folder}/nowhere.yaml", 2, "no such task",
         "says what it takes"),
    Case("results of a task without any", nothing, "results {folder}/task.yaml --runs {folder}/nowhere", 1,
         "/nowhere (no such folder)", "says where it looked, and how to name another place"),
    Case("results of a folder without any", nothing, "results {model}", 1, "there is no result yet",
         "says how to make one"),
    Case("verifying what is neither run nor evaluation", text("some/file.txt", "x"), "verify {folder}/some", 2,
         "neither a run nor an evaluation", "says what it takes"),
    Case("verifying an evaluation that is broken", _broken("evaluations/tuned/predictions.jsonl", "{"),
         "verify {folder}/out/evaluations/tuned", 1, "a line of the predictions is broken", "names the line"),
]  # fmt: skip
