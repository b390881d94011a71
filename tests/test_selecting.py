"""`halfbyte select` on tiny models: what fails stops nothing, and what is finished is not done again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halfbyte import selecting
from halfbyte.checkpoint.pack import pack
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.cli import main
from tests.checkpoint.rangehub import SHA, RangeHub, serving, use
from tests.select.folders import data_file, task_file
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` and `two` (a short context), `packed` (nf4) and `broken`."""
    folder = tmp_path_factory.mktemp("models")
    tiny_checkpoint("llama", folder / "one")
    tiny_checkpoint("qwen3", folder / "two", max_position_embeddings=24)
    pack(open_checkpoint(str(folder / "one")), folder / "packed", "nf4")
    tiny_checkpoint("llama", folder / "broken")
    weights = folder / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The variants that are evaluated, as they are."""
    names: list[str] = []
    evaluate = selecting.evaluate

    def noted(model: Any, task: Any, folder: Path, name: str, *rest: Any, **more: Any) -> Any:
        names.append(name)
        return evaluate(model, task, folder, name, *rest, **more)

    monkeypatch.setattr(selecting, "evaluate", noted)
    return names


def run_file(folder: Path, model: Path) -> Path:
    text = f"model: {model}\ndata: {{train: train.jsonl}}\ntune: {{batch: 4, epochs: 9}}\nadapter: {{rank: 2}}\n"
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "select.json").read_text()))


def states(found: dict[str, Any]) -> dict[str, str]:
    return {variant["name"]: variant["status"] for one in found["candidates"] for variant in one["variants"]}


def test_the_whole_way(models: Path, folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    task, out = task_file(folder), folder / "out"
    names = [*(str(models / name) for name in ("one", "broken", "two", "packed")), "./a<b>&gone", "llama-3.1-8b"]
    arguments = ["select", str(task), "--candidates", ",".join(names), "--budget", "20GB", "--weights", "nf4,int8",
                 "--shots", "0,2", "--out", str(out)]  # fmt: skip
    assert main(arguments) == 0
    found, said = read(out), capsys.readouterr().out
    assert found["finished"] and found["schema"] == 1 and found["metric"] == "mae" and found["items"] == 12
    assert states(found) == {
        **{f"one-{weights}": "scored" for weights in ("nf4", "int8", "nf4-2shot", "int8-2shot")},
        **{f"broken-{weights}": "failed" for weights in ("nf4", "int8", "nf4-2shot", "int8-2shot")},
        "two-nf4": "scored", "two-int8": "scored", "two-nf4-2shot": "too long", "two-int8-2shot": "too long",
        "packed-nf4": "scored", "packed-nf4-2shot": "scored", "packed-int8": "failed", "packed-int8-2shot": "failed",
        **{f"a-b-gone-{weights}": "failed" for weights in ("nf4", "int8", "nf4-2shot", "int8-2shot")},
        **{f"llama-3.1-8b-{weights}": "planned" for weights in ("nf4", "int8", "nf4-2shot", "int8-2shot")},
    }  # fmt: skip
    one = found["candidates"][0]
    assert one["context"] == 256 and one["training"]["items"] == 30 and one["training"]["cut"] == 0
    assert one["numbers"]["style"] and one["licence"]["value"] is None and one["error"] is None
    scored = one["variants"][0]
    assert scored["plan"]["fits"] and scored["plan"]["tune_bytes"] > scored["plan"]["evaluate_bytes"] * 0.5
    assert not scored["plan"]["assumed"] and scored["tokens"]["items"] == 12
    result = json.loads((out / scored["evaluation"]["folder"] / "result.json").read_text())
    assert result["metrics"]["mae"] == scored["evaluation"]["metrics"]["mae"] and result["variant"] == "one-nf4"
    assert found["candidates"][4]["error"]["what"] == "there is no such folder"
    assert found["candidates"][5]["variants"][0]["plan"]["assumed"]
    assert sorted(found["ranking"]["order"]) == sorted(n for n, state in states(found).items() if state == "scored")
    assert found["recommendation"]["variant"] in found["ranking"]["tied"] and found["median"]["value"] > 0
    assert len(found["ranking"]["against_best"]) == 7 and len(asked) == 8
    assert "Recommended" in said and "packed as nf4 and can't be repacked" in said
    assert "12 of 12 items are longer than its context of 24 tokens" in said

    page = (out / "select.html").read_text()
    assert "<script" not in page and "://" not in page and "default-src 'none'" in page
    assert "a<b>" not in page and "a&lt;b&gt;&amp;gone" in page and page.count("<svg") == 1
    assert all(name in page for name in found["ranking"]["order"])

    asked.clear()
    assert main([*arguments, "--json"]) == 0  # all is there
    again = capsys.readouterr()
    assert asked == [] and json.loads(again.out)["ranking"] == found["ranking"]


def test_what_does_not_fit_is_never_loaded(
    models: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selecting, "load", lambda *_: pytest.fail("a model was loaded"))
    arguments = ["select", str(task_file(folder)), "--candidates", f"{models / 'one'},llama-3.1-8b", "--budget", "20MB"]
    assert main([*arguments, "--out", str(folder / "out")]) == 3
    found, said = read(folder / "out"), capsys.readouterr().out
    assert set(states(found).values()) == {"does not fit"} and found["recommendation"]["variant"] is None
    assert "20.0 MB are there" in said and "Too large: one-nf4 and llama-3.1-8b-nf4." in said
    assert (folder / "out" / "select.html").is_file()


def test_a_hub_model_that_does_not_fit_is_not_downloaded(
    models: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in (models / "one").iterdir()}
    arguments = ["select", str(task_file(folder)), "--candidates", "org/model", "--budget", "20MB"]
    with serving(RangeHub(files)) as hub:
        use(hub.url, monkeypatch, str(folder / "cache"))
        assert main([*arguments, "--out", str(folder / "out")]) == 3
    assert hub.log and all(asked.range for asked in hub.log if asked.file == "model.safetensors")
    (one,) = read(folder / "out")["candidates"]
    assert one["kind"] == "hub" and one["variants"][0]["plan"]["assumed"]


def test_a_hub_model_is_scored_from_the_cache(models: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use("http://127.0.0.1:1", monkeypatch, str(folder / "cache"))
    place = folder / "cache" / "models--org--model"
    shutil.copytree(models / "one", place / "snapshots" / SHA)
    (place / "snapshots" / SHA / "README.md").write_text("---\nlicense: mit\n---\n")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(SHA)
    arguments = ["select", str(task_file(folder)), "--candidates", "org/model,org/other"]
    assert main([*arguments, "--out", str(folder / "out")]) == 0
    found = read(folder / "out")
    assert states(found) == {"model-nf4": "scored", "other-nf4": "failed"}
    assert found["candidates"][0]["licence"] == {"value": "mit", "source": "README.md, metadata"}


def test_nothing_but_failures_is_a_failure_that_leaves_no_folder(
    models: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["select", str(task_file(folder)), "--candidates", f"{models / 'broken'},./gone", "--json"]
    assert main([*arguments, "--out", str(folder / "new" / "out")]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert set(states(found).values()) == {"failed"}
    for candidate in found["candidates"]:
        assert said.err.count(candidate["error"]["what"]) == 2  # when it fails, and at the end
    assert not (folder / "new").exists() and "page:" not in said.err
    (folder / "there").mkdir()
    assert main([*arguments, "--out", str(folder / "there")]) == 1
    assert set(states(read(folder / "there")).values()) == {"failed"}  # what was there is left


def test_where_all_fail_the_earlier_recommendation_stands(
    models: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(folder), folder / "out"
    assert main(["select", str(task), "--candidates", str(models / "one"), "--out", str(out)]) == 0
    before = {name: (out / name).read_text() for name in ("select.json", "select.html")}
    capsys.readouterr()
    again = ["select", str(task), "--candidates", f"{models / 'broken'},./gone", "--out", str(out)]
    assert main(again) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert {name: (out / name).read_text() for name in before} == before
    assert "broken-nf4: failed" in said and "Nothing is recommended: no candidate has a score." in said
    assert "are those of the earlier selection, which stands: Recommended: one-nf4, with mae" in said
    assert main([*again, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["recommendation"]["variant"] is None and found["kept"]["variant"] == "one-nf4"
    assert set(states(found).values()) == {"failed"}
    assert main(["select", str(task), "--candidates", str(models / "two"), "--out", str(out)]) == 0  # this one counts
    assert read(out)["recommendation"]["variant"] == "two-nf4" and read(out)["kept"] is None


_KILLED = """
import os, signal, sys
from halfbyte import cli, selecting
evaluate, calls = selecting.evaluate, []
def second_is_the_last(*arguments, **options):
    calls.append(arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(*arguments, **options)
selecting.evaluate = second_is_the_last
cli.main(sys.argv[1:])
"""


def test_after_a_kill_it_goes_on_where_it_was(
    models: Path, folder: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, out = task_file(folder), folder / "out"
    arguments = ["select", str(task), "--candidates", f"{models / 'one'},{models / 'two'}", "--out", str(out)]
    arguments += ["--run", str(run_file(folder, models / "one")), "--probe", "3", "--probe-best", "1"]
    done = subprocess.run([sys.executable, "-c", _KILLED, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = read(out)
    assert not found["finished"] and states(found) == {"one-nf4": "scored"}

    def stopped(config: Any, **_: Any) -> int:
        raise KeyboardInterrupt

    from halfbyte import experiment

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "tune", stopped)
        assert main(arguments) == 130
    assert asked == ["two-nf4"] and not read(out)["finished"]

    asked.clear()
    assert main(arguments) == 0
    (probe,) = asked
    found = read(out)
    probed = [v for one in found["candidates"] for v in one["variants"] if v["probe"]]
    assert [v["probe"]["status"] for v in probed] == ["scored"] and probe.startswith(f"{probed[0]['name']}-probe-")
    run = out / "probes" / probe
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3 and "rank: 2" in (run / "run.yaml").read_text()
    assert found["probe_ranking"]["chosen"] == found["recommendation"]["variant"] == probed[0]["name"]
    assert "after a probe of 3 steps" in found["recommendation"]["reasons"][0]

    asked.clear()
    assert main(arguments) == 0 and asked == []


def test_a_changed_checkpoint_is_scored_again(folder: Path, asked: list[str]) -> None:
    model = tiny_checkpoint("llama", folder / "model")
    arguments = ["select", str(task_file(folder)), "--candidates", str(model), "--out", str(folder / "out")]
    assert main(arguments) == 0 and main(arguments) == 0 and asked == ["model-nf4"]
    tiny_checkpoint("llama", model, seed=1)
    assert main(arguments) == 0 and asked == ["model-nf4"] * 2
    task_file(folder, items=11)
    assert main(arguments) == 0 and asked == ["model-nf4"] * 3
    assert main([*arguments, "--limit", "5"]) == 0 and read(folder / "out")["items"] == 5
    assert main(arguments) == 0 and len(asked) == 4  # what a limit scored is beside the whole, not in its place


def test_another_tokenizer_or_generation_config_is_scored_again(folder: Path, asked: list[str]) -> None:
    model = tiny_checkpoint("llama", folder / "model")
    arguments = ["select", str(task_file(folder)), "--candidates", str(model), "--out", str(folder / "out")]
    assert main(arguments) == 0
    for count, (name, text) in enumerate(
        [("generation_config.json", '{"eos_token_id": 3}'), ("special_tokens_map.json", "{}\n")], 2
    ):
        (model / name).write_text(text)
        assert main(arguments) == 0 and asked == ["model-nf4"] * count, name
    assert main(arguments) == 0 and len(asked) == 3


def test_weights_that_were_written_again_are_scored_again(folder: Path, asked: list[str]) -> None:
    """The fingerprint samples a file: a change that it misses shows in the time of writing."""
    model = tiny_checkpoint("llama", folder / "model")
    arguments = ["select", str(task_file(folder)), "--candidates", str(model), "--out", str(folder / "out")]
    assert main(arguments) == 0
    before = read(folder / "out")["candidates"][0]["fingerprint"]
    os.utime(model / "model.safetensors", ns=(1, 10**18))
    assert main(arguments) == 0 and asked == ["model-nf4"] * 2
    assert read(folder / "out")["candidates"][0]["fingerprint"] == before


def test_a_probe_is_of_all_that_it_learns_from(folder: Path, models: Path, asked: list[str]) -> None:
    """Another system text, or other lines in a validation file of the same name, make another probe."""
    task, run = task_file(folder), folder / "run.yaml"
    lines = [{"prompt": f"set {k} costs $", "completion": "1", "s": "be short"} for k in range(8)]
    arguments = ["select", str(task), "--candidates", str(models / "one"), "--run", str(run), "--probe", "1"]

    def probed(train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> int:
        data_file(folder / "learn.jsonl", train)
        data_file(folder / "held.jsonl", validation)
        run.write_text(
            "model: x\ndata:\n  train: learn.jsonl\n  validation: held.jsonl\n"
            "  template: {prompt: '{prompt}', completion: '{completion}', system: '{s}'}\n"
            "tune: {batch: 4}\nadapter: {rank: 2}\n"
        )
        assert main([*arguments, "--out", str(folder / "out")]) == 0
        return sum("probe" in name for name in asked)

    assert [probed(lines, lines[:2]), probed(lines, lines[:2]), probed(lines, lines[2:4])] == [1, 1, 2]
    assert probed([line | {"s": "be long"} for line in lines], lines[2:4]) == 3


def test_a_probe_that_learned_the_test_set_is_told(
    folder: Path, models: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(folder), folder / "out"
    shutil.copy(folder / "test.jsonl", folder / "train.jsonl")
    arguments = ["select", str(task), "--candidates", str(models / "one"), "--probe", "1", "--out", str(out)]
    arguments += ["--run", str(run_file(folder, models / "one"))]
    assert main(arguments) == 0
    said, found = " ".join(capsys.readouterr().out.split()), read(out)
    assert found["leaks"][0].endswith("of 12 test items stand in the training data, too: what the tuned model scores on"
                                      " them is memory")  # fmt: skip
    assert f"warning: {found['leaks'][0]}" in said
    assert any("learned from gives items away" in one for one in found["recommendation"]["reasons"])
    (probe,) = [
        v["probe"]["evaluation"]["folder"] for one in found["candidates"] for v in one["variants"] if v["probe"]
    ]
    file = out / probe / "result.json"
    result = json.loads(file.read_text())
    assert result["leaks"] == found["leaks"]
    assert "leaks" not in json.loads((out / "evaluations" / "median" / "result.json").read_text())
    count = len(asked)
    assert main(arguments) == 0 and len(asked) == count  # all is there
    file.write_text(json.dumps({key: value for key, value in result.items() if key != "leaks"}))
    assert main(arguments) == 0 and len(asked) == count + 1  # a result that does not say it is none


def test_without_a_leak_a_probe_says_nothing_of_one(folder: Path, models: Path) -> None:
    arguments = ["select", str(task_file(folder)), "--candidates", str(models / "one"), "--probe", "1"]
    arguments += ["--run", str(run_file(folder, models / "one")), "--out", str(folder / "out")]
    assert main(arguments) == 0 and read(folder / "out")["leaks"] == []
    assert not any("gives items away" in one for one in read(folder / "out")["recommendation"]["reasons"])


def test_what_a_library_raises_stops_only_its_candidate(
    models: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load: Callable[..., Any] = selecting.load

    def faulty(what: Any, *rest: Any) -> Any:
        if what.model.endswith("one"):
            raise RuntimeError("a kernel\nfailed")
        return load(what, *rest)

    monkeypatch.setattr(selecting, "load", faulty)
    names = f"{models / 'one'},{models / 'two'}"
    assert main(["select", str(task_file(folder)), "--candidates", names, "--out", str(folder / "out")]) == 0
    found = read(folder / "out")
    assert states(found) == {"one-nf4": "failed", "two-nf4": "scored"}
    assert found["candidates"][0]["variants"][0]["reason"] == "RuntimeError: a kernel failed"


def test_what_looking_at_a_candidate_raises_stops_only_it_and_spares_what_was_found(
    models: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfbyte.select import evidence

    take = evidence.take_inventory

    def faulty(model: str, revision: str | None) -> Any:
        if model.endswith("one"):
            raise ValueError("odd")
        return take(model, revision)

    monkeypatch.setattr(evidence, "take_inventory", faulty)
    asked = ["select", str(task_file(folder)), "--out", str(folder / "out"), "--candidates"]
    assert main([*asked, f"{models / 'one'},{models / 'two'}"]) == 0
    found = read(folder / "out")
    assert states(found) == {"one-nf4": "failed", "two-nf4": "scored"} and found["recommendation"]
    assert "ValueError: odd" in json.dumps(found["candidates"][0])
    monkeypatch.setattr(evidence, "look_at", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([*asked, str(models / "two")]) == 130
    assert read(folder / "out")["recommendation"] == found["recommendation"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--candidates", ","], "no candidate"),
        (["--candidates", "x", "--weights", "nf5"], "did you mean 'nf4'"),
        (["--candidates", "x", "--budget", "12"], "unit"),
        (["--candidates", "x", "--shots", "two"], "whole numbers"),
        (["--candidates", "x", "--probe", "0"], "--probe must be at least 1"),
        (["--candidates", "x", "--probe-best", "2"], "without --probe"),
        (["--candidates", "x", "--limit", "0"], "--limit"),
        (["--candidates", "x", "--device", "gpu"], "unknown device"),
        (["--candidates", "x", "--run", "none.yaml"], "no such file"),
        (["--candidates", "x", "--out", "{folder}"], "something else"),
        (["--candidates", "x", "--out", "{folder}/other"], "another task"),
    ],
)
def test_a_mistake_is_one_clear_error(
    more: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_file(folder)
    (folder / "other").mkdir()
    (folder / "other" / "select.json").write_text('{"task": "another"}')
    out = [] if "--out" in more else ["--out", str(folder / "out")]
    assert main(["select", str(task), *(text.format(folder=folder) for text in more), *out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert not (folder / "out").exists()
    assert main(["select", str(folder / "none.yaml"), "--candidates", "x"]) == 2


def test_a_probe_or_shots_without_training_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = task_file(folder, train="null")
    assert main(["select", str(task), "--candidates", "x", "--probe", "2", "--out", str(folder / "out")]) == 2
    assert "a probe needs training data" in capsys.readouterr().err
    assert main(["select", str(task), "--candidates", "x", "--shots", "2", "--out", str(folder / "out")]) == 1
    assert "shots need training examples" in capsys.readouterr().err and not (folder / "out").exists()
