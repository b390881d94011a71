"""`halfbyte evaluate` on the command line: whose result goes where, and what of a stranger's code is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfbyte.cli import main
from tests.test_cli import task_files
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "tiny")


def test_a_result_of_another_experiment_is_neither_reused_nor_overwritten(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_yaml = task_files(folder, model)
    task = folder / "task.yaml"
    place = folder / "out" / "evaluations" / "base-nf4"
    assert main(["evaluate", str(model), "--task", str(task), "--limit", "3", "--out", str(place)]) == 0
    assert main(["tune", str(run_yaml)]) == 0  # whose base is scored on all items
    assert json.loads((place / "result.json").read_text())["items"] == 10
    capsys.readouterr()
    assert main(["evaluate", str(folder / "out"), "--task", str(task), "--limit", "3"]) == 2
    assert "holds a result" in capsys.readouterr().err
    assert main(["evaluate", str(folder / "out"), "--task", str(task)]) == 0  # the very same: done again
    capsys.readouterr()
    before = (place / "result.json").read_bytes()
    other = ["evaluate", str(model), "--task", str(task), "--weights", "int8", "--out", str(place)]
    assert main(other) == 2 and "a result of another format" in capsys.readouterr().err
    tuned = ["evaluate", str(model), "--task", str(task), "--adapter", str(folder / "out" / "adapter")]
    assert main([*tuned, "--out", str(place)]) == 2 and "another adapter" in capsys.readouterr().err
    assert (place / "result.json").read_bytes() == before
    assert main(["evaluate", str(model), "--task", str(task), "--out", str(folder)]) == 2
    assert "holds something else" in capsys.readouterr().err and not (folder / "result.json").exists()
    assert main(["compare", str(place), str(folder / "out" / "evaluations" / "tuned")]) == 0


def test_a_tasks_own_code_runs_only_with_its_flag(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = task_files(folder, model)
    (folder / "task.yaml").write_text(
        "kind: python\ndata: test.jsonl\nscorer: scorer.py:score\ndecoding: {max_new_tokens: 4}\n"
    )
    trace = folder / "it-ran"
    code = f"open({str(trace)!r}, 'w')\ndef score(answer, reference, record):\n    return record['n'] / 10\n"
    (folder / "scorer.py").write_text(code)
    evaluate = ["evaluate", str(model), "--task", str(folder / "task.yaml"), "--out", str(folder / "out")]
    (folder / "space.yaml").write_text("adapter.rank: [2, 4]\n")
    select = ["select", str(folder / "task.yaml"), "--candidates", str(folder / "gone"), "--out", str(folder / "s")]
    sweep = ["sweep", str(run_file), str(folder / "space.yaml"), "--set", "data.validation=0.2"]
    for refused in (evaluate, ["tune", str(run_file)], select, sweep):
        assert main(refused) == 2
        said = capsys.readouterr().err
        assert "runs Python code" in said and f"--scorer {folder}/scorer.py:score" in said
    assert not trace.exists()
    assert main([*select, "--scorer", f"{folder}/scorer.py:score"]) == 1  # past it: there is no such candidate
    assert main([*evaluate, "--scorer", f"{folder}/scorer.py:score"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert trace.exists() and "score ↑" in said and "2.45" in said and "worst items" in said
    assert main(["results", str(folder / "out")]) == 0  # reads, and runs nothing


def test_benchmarks_of_the_harness(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    lines = [{"text": f"Item {k} is", "right": k % 2} for k in range(12)]
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "t.yaml").write_text(
        f"task: colours\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/t.jsonl}}, cache_dir: "
        f"{folder}/cache}}\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{{{text}}}}'\n"
        "doc_to_choice: [red, green]\ndoc_to_target: right\nmetric_list: [{metric: acc}]\n"
    )
    for weights in ("nf4", "bf16"):
        own = ["--harness", "colours", "--harness-path", str(folder), "--limit", "9"]
        assert main(["evaluate", str(model), *own, "--weights", weights, "--out", str(folder / weights)]) == 0
    said = capsys.readouterr().out
    assert "colours: base-nf4, 9 items" in said and "acc" in said
    assert main(["compare", str(folder / "nf4" / "colours"), str(folder / "bf16" / "colours"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "acc"
    assert main(["evaluate", str(model), "--task", "x.yaml", "--shots", "2"]) == 2
    assert "belong to --harness" in capsys.readouterr().err
    assert main(["evaluate", str(model), "--harness", "colours", "--scorer", "x.py:score"]) == 2
    assert "--scorer belongs to --task" in capsys.readouterr().err
