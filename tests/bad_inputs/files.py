"""RUN.yaml, TASK.yaml and SPACE.yaml that say what can't be."""

from __future__ import annotations

import json

from tests.bad_inputs.case import ASK, SWEEP, TUNE, Case, Make, Place, edit, nothing, text

_MODEL = "model: "
_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def _run(line: str) -> Make:
    """run.yaml with one more line."""
    return lambda place: place.write("run.yaml", (place.folder / "run.yaml").read_text() + line + "\n")


def _task(**lines: object) -> Make:
    """task.yaml with other lines."""

    def make(place: Place) -> None:
        options = {"kind": "number", "data": "test.jsonl", "decoding": {"max_new_tokens": 4}} | lines
        place.write("task.yaml", "".join(f"{key}: {json.dumps(value)}\n" for key, value in options.items() if value))

    return make


def _tested(lines: list[dict[str, object]], **options: object) -> Make:
    """Another test set, and other lines in task.yaml."""

    def make(place: Place) -> None:
        _task(**options)(place)
        place.write("test.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    return make


def _folder(place: Place) -> None:
    (place.folder / "run.yaml").unlink()
    (place.folder / "run.yaml").mkdir()


def _loop(place: Place) -> None:
    (place.folder / "run.yaml").unlink()
    (place.folder / "run.yaml").symlink_to("run.yaml")


def _space(content: str) -> Make:
    return text("space.yaml", content)


_TWO: list[dict[str, object]] = [{"prompt": "a", "completion": "1", "n": 1}, {"prompt": "b", "completion": "2", "n": 1}]

CASES = [
    Case("a RUN.yaml that is not there", nothing, "tune {folder}/none.yaml", 2, "no such file", "shows the path"),
    Case("a folder in place of RUN.yaml", _folder, TUNE, 2, "a folder stands where", "asks for the file"),
    Case("a RUN.yaml that is a link to itself", _loop, TUNE, 2, "can't be read", "names the file"),
    Case("a RUN.yaml that is no YAML", text("run.yaml", "model: [a\ndata: }"), TUNE, 2, "no valid YAML",
         "names line and column"),
    Case("a RUN.yaml that is not UTF-8", text("run.yaml", b"model: \xff\xfe"), TUNE, 2, "can't be read",
         "names the byte"),
    Case("a RUN.yaml that is a list", text("run.yaml", "- a\n- b\n"), TUNE, 2, "holds no mapping",
         "shows how one looks"),
    Case("an empty RUN.yaml", text("run.yaml", ""), TUNE, 2, "no model is named", "says what to add"),
    Case("YAML that asks for a Python object", _run("seed: !!python/object/apply:os.getpid []"), TUNE, 2,
         "could not determine a constructor", "no object is made, nothing is run"),
    Case("anchors that expand to a billion values", text("run.yaml", f"{_LAUGHS}model: *i\n"), TUNE, 2,
         "aliases stand for more", "counted before anything is expanded"),
    Case("an anchor that holds itself", text("run.yaml", "model: &a [*a]\n"), TUNE, 2, "stands within what it names",
         "found before anything is expanded"),
    Case("YAML nested without end", text("run.yaml", "model: " + "[" * 20_000), TUNE, 2,
         "brackets are nested too deeply", "refused"),
    Case("an unknown key", _run("tuen: {epochs: 1}"), TUNE, 2, "unknown key 'tuen': did you mean 'tune'",
         "names the nearest key"),
    Case("an unknown key in a group", edit("run.yaml", "max_steps: 2", "max_step: 2"), TUNE, 2,
         "'tune.max_step': did you mean 'max_steps'",
         "names the nearest key"),
    Case("a key that stands twice", _run("model: other"), TUNE, 2, "stands twice", "which one counts is not guessed"),
    Case("text where a number is expected", edit("run.yaml", "batch: 4", "batch: four"), TUNE, 2,
         "must be a whole number", "shows key and value"),
    Case("a number out of its range", edit("run.yaml", "batch: 4", "batch: 0"), TUNE, 2,
         "'tune.batch' must be at least 1",
         "shows the range"),
    Case("an infinite number", edit("run.yaml", "batch: 4", "batch: 4, learning_rate: .inf"), TUNE, 2,
         "'tune.learning_rate' must be a number", "shows key and value"),
    Case("a value where a group is expected", edit("run.yaml", "tune: {max_steps: 2, batch: 4}", "tune: fast"),
         TUNE, 2,
         "must be a mapping", "shows the value"),
    Case("several faults at once", edit("run.yaml", "max_steps: 2, batch: 4", "max_steps: -1, batch: 0, clip: no"),
         TUNE,
         2, "3 faults in the options", "all of them in one error"),
    Case("a format of weights that does not exist", _run("weights: nf5"), TUNE, 2, "must be one of nf4, nf4-single",
         "lists the formats"),
    Case("an adapter's target that matches no layer", _run("adapter: {targets: [w1]}"), TUNE, 2,
         "nothing matches the target 'w1'",
         "lists the layers' names"),
    Case("memory without its unit", _run("memory: 8"), TUNE, 2, "needs its unit", "shows how to write it"),
    Case("memory that can't hold the run", _run("memory: 100MB"), TUNE, 3, "the run does not fit",
         "refused before anything is loaded; says what would help"),
    Case("a device that is not there", _run("device: cuda:7"), TUNE, 2, "the device is not there",
         "says what is there"),
    Case("layers that shall be streamed where there is no card", _run("stream: on"), TUNE, 2, "this is for a card",
         "found before anything is loaded"),
    Case("a plan of streamed layers where there is no card", _run("stream: on"), "plan {folder}/run.yaml", 2,
         "this is for a card", "as `tune` would say it"),
    Case("activations that shall go to the host without a card",
         edit("run.yaml", "tune: {max_steps: 2, batch: 4}", "tune: {offload_activations: true}"), TUNE,
         2, "this is for a card", "found before anything is loaded"),
    Case("no training data", edit("run.yaml", "data: {train: train.jsonl}", "data: {}"), TUNE, 2, "no training data",
         "says what to add"),
    Case("a task that is not there", edit("run.yaml", "task: task.yaml", "task: tsak.yaml"), TUNE, 2,
         "there is no such file",
         "found before anything is trained"),
    Case("an output folder below a file", edit("run.yaml", "out: out", "out: train.jsonl/out"), TUNE, 2,
         "can't be made", "found before anything is loaded"),
    Case("an output folder that holds something else", lambda place: (place.write("out/letter.txt", "dear"), None)[1],
         TUNE, 2, "holds something else", "nothing in it is changed"),
    Case("an unknown kind of task", _task(kind="numbre"), ASK, 2, "'kind' must be one of number", "lists the kinds"),
    Case("a task without data", _task(data=None), ASK, 2, "no test data", "says what to add"),
    Case("a task whose data are missing", _task(data="tset.jsonl"), ASK, 1, "data files there: test.jsonl, train.jsonl",
         "lists the files beside it"),
    Case("a task whose name can't be a folder's", _task(name="../up"), ASK, 2, "can't be a folder's name",
         "lists the letters that may be used"),
    Case("a reference that is no number", _tested([*_TWO, {"prompt": "c", "completion": "many"}]), ASK, 1,
         "the reference is no number", "names the line"),
    Case("a test item without a reference", _tested([*_TWO, {"prompt": "c"}]), ASK, 1, "there is no reference answer",
         "names the line; several faults are one error"),
    Case("an id that stands twice", _tested(_TWO, id="n"), ASK, 1, "stands twice", "names the id"),
    Case("an id column that is not there", _tested(_TWO, id="nr"), ASK, 1, "no column 'nr'",
         "names the nearest column"),
    Case("a choice without options", _task(kind="choice"), ASK, 2, "needs options", "shows how to write them"),
    Case("a reference that is not among the options", _task(kind="choice", options=["yes", "no"]), ASK, 1,
         "the reference is none of the options",
         "names line and options"),
    Case("a JSON schema that is missing", _task(kind="json", schema="none.json"), ASK, 1,
         "the JSON Schema can't be read",
         "names the file"),
    Case("a JSON schema for another kind", _task(schema="none.json"), ASK, 2, "'schema' is for kind 'json'",
         "says what to change"),
    Case("a scoring function that the command line does not name",
         lambda place: (_task(kind="python", scorer="score.py:score")(place), place.write("score.py", "1/0"))[1],
         ASK, 2,
         "runs Python code", "the file is not run"),
    Case("a scoring function that names no function", _task(kind="python", scorer="score.py"), ASK, 2,
         "names no function", "shows how to write it"),
    Case("shots without training examples", _task(shots=2), ASK, 1, "shots need training examples",
         "says what to add"),
    Case("more shots than examples", _task(shots=30, train="train.jsonl"), ASK, 1, "too few training examples",
         "says how many there are"),
    Case("a split that leaves nothing", _tested(_TWO[:1], split={"share": 0.5}), ASK, 1, "leaves nothing",
         "says which side"),
    Case("a longest answer of 0 tokens", _task(decoding={"max_new_tokens": 0}), ASK, 2,
         "'decoding.max_new_tokens' must be at least 1",
         "shows the range"),
    Case("a space without an option", _space(""), SWEEP, 2, "names no option", "shows how to write one"),
    Case("a space with an unknown option", _space("tune.epoch: [1, 2]\n"), SWEEP, 2,
         "'tune.epoch': did you mean 'epochs'",
         "names the nearest key"),
    Case("a space with an option that can't be searched", _space("data.train: [a, b]\n"), SWEEP, 2,
         "can't be searched",
         "says why"),
    Case("a range whose low is over its high", _space("tune.learning_rate: {low: 1, high: 0.1}\n"), SWEEP, 2,
         "low must be under high", "all faults in one error"),
    Case("a list of one value", _space("adapter.rank: [8]\n"), SWEEP, 2, "at least two values", "shows the list"),
    Case("a value of the wrong type in a space", _space("adapter.rank: [8, many]\n"), SWEEP, 2,
         "'adapter.rank' must be a whole number",
         "shows the value"),
    Case("yes where true or false is expected", _run("adapter: {rslora: yes}"), TUNE, 2,
         "'adapter.rslora' must be true or false, not 'yes'", "read as YAML 1.2: yes is a text"),
    Case("a number to the base 60, of YAML 1.1", _run("seed: " + "1:" * 180 + "1.5"), TUNE, 2,
         "'seed' must be a whole number", "read as YAML 1.2: it is a text"),
]  # fmt: skip
