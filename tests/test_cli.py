"""The command line as a newcomer meets it: help with an example, one clear error, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import halfbyte
from halfbyte.cli import main
from tests.tiny import tiny_checkpoint

VERBS = ("plan", "check", "pack", "evaluate", "tune", "sweep", "compare", "results", "select", "report", "verify",
         "generate", "doctor", "demo")  # fmt: skip


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "halfbyte", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0 and f"example:\n  halfbyte {verb}" in said


def of_children() -> float:
    """Seconds of the processor that ended processes have taken: what else the machine does is no fault of theirs."""
    return os.times().children_user + os.times().children_system


def test_help_answers_at_once() -> None:
    best = 9.0
    for _ in range(3):
        started = of_children()
        assert run("--help").returncode == 0
        best = min(best, of_children() - started)
    assert best < 0.3


def test_plan_of_the_catalogue_is_exact_and_fast() -> None:
    started = of_children()
    done = run("plan", "llama-3.1-8b", "--lora-rank", 32, "--lora-targets", "attention", "--json")
    assert of_children() - started < 2 and done.returncode in (0, 3)
    plan = json.loads(done.stdout)
    assert plan["parameters"] == 8_030_261_248 and plan["adapter_bytes"] == 109_051_904
    assert plan["weights_bytes"]["nf4"] == 5_591_539_712


def task_files(folder: Path, model: Path, **run_lines: str) -> Path:
    lines = [{"prompt": f"set {i} costs $", "completion": f"{i % 9}.99", "n": i} for i in range(30)]
    for name, part in (("train", lines[:20]), ("test", lines[20:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    (folder / "task.yaml").write_text("kind: number\ndata: test.jsonl\ndecoding: {max_new_tokens: 4}\n")
    lines_of = {
        "model": str(model),
        "data": "{train: train.jsonl}",
        "tune": "{max_steps: 2, batch: 4}",
        "task": "task.yaml",
        "out": "out",
    } | run_lines
    (folder / "run.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines_of.items()))
    return folder / "run.yaml"


def test_the_whole_way(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_yaml = task_files(folder, model)
    assert main(["tune", str(run_yaml)]) == 0
    out = folder / "out"
    for name in ("run.yaml", "plan.json", "environment.json", "metrics.jsonl", "adapter/adapter_config.json",
                 "evaluations/base-nf4/result.json", "evaluations/tuned/predictions.jsonl", "comparison.json",
                 "comparisons/median-tuned.json", "report.html"):  # fmt: skip
        assert (out / name).is_file(), name
    comparison = json.loads((out / "comparison.json").read_text())
    assert (comparison["a"], comparison["b"], comparison["metric"]) == ("base-nf4", "tuned", "mae")
    assert json.loads((out / "evaluations" / "tuned" / "result.json").read_text())["fallback_source"]
    capsys.readouterr()

    assert main(["tune", str(run_yaml), "--resume"]) == 0  # finished: nothing is trained again
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert main(["generate", str(out), "set 3 costs $", "--max-new-tokens", "3"]) == 0
    assert main(["generate", str(out), "set 3 costs $", "--max-new-tokens", "3", "--base"]) == 0
    assert main(["report", str(out)]) == 0
    assert main(["plan", str(out)]) in (0, 3)
    evaluations = out / "evaluations"
    capsys.readouterr()
    assert main(["compare", str(evaluations / "base-nf4"), str(evaluations / "tuned"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] in ("better", "worse", "no detectable difference")
    sides = [str(evaluations / name) for name in ("base-nf4", "tuned", "median")]
    assert main(["compare", *sides, "--detect", "0.5", "--report", str(folder / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "adjusted for 2 comparisons" in said and "0.5 would take" in said and "page.html" in said
    assert "What changed most" in (folder / "page.html").read_text()
    assert main(["results", str(out)]) == 0 and "base-nf4" in capsys.readouterr().out
    task_yaml = str(folder / "task.yaml")
    assert main(["results", task_yaml, "--runs", str(folder), "--json"]) == 0
    assert {row["variant"] for row in json.loads(capsys.readouterr().out)} == {"base-nf4", "tuned", "median"}
    assert main(["evaluate", str(out), "--task", task_yaml, "--variant", "merged"]) == 2
    assert "reserved" in capsys.readouterr().err
    if Path("/dev/full").exists():  # Linux's file on a disk that is always full
        assert main(["compare", str(evaluations / "base-nf4"), str(evaluations / "tuned"), "--out", "/dev/full"]) == 1
        assert "free some disk space" in capsys.readouterr().err
    assert main(["evaluate", str(out), "--task", str(folder / "task.yaml"), "--out", str(folder / "again")]) == 0


def test_the_compute_type_is_frozen_in_the_run(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfbyte.kernels import compute

    monkeypatch.setattr(compute, "measured", lambda: compute.Measured(bf16=0.004, fp32=0.002))
    run_yaml = task_files(folder, model, tune="{max_steps: 1, batch: 4}")
    assert main(["tune", str(run_yaml)]) == 0
    assert "compute fp32: bf16 is slow here: a product took 4.00 ms in bf16" in capsys.readouterr().out
    frozen, out = folder / "out" / "run.yaml", folder / "out"
    assert "compute: fp32\n" in frozen.read_text()
    assert json.loads((out / "evaluations" / "tuned" / "result.json").read_text())["compute"] == "fp32"

    monkeypatch.setattr(compute, "measured", lambda: compute.Measured(bf16=0.001, fp32=0.002))
    assert main(["tune", str(run_yaml), "--resume"]) == 0
    began = "compute fp32: settled when the run began"
    assert began in capsys.readouterr().out and "compute: fp32\n" in frozen.read_text()
    assert main(["tune", str(frozen), "--resume"]) == 0  # as the line after an interruption says
    assert began in capsys.readouterr().out
    assert main(["tune", str(run_yaml), "--resume", "--set", "compute=bf16"]) == 2
    assert "compute: 'fp32' -> 'bf16'" in capsys.readouterr().err
    asked = [(["--compute", "bf16"], "compute bf16: as asked"), ([], "compute fp32: as the run was trained")]
    for flag, wanted in asked:
        again = ["evaluate", str(out), "--task", str(folder / "task.yaml"), "--out", str(folder / f"again{len(flag)}")]
        assert main([*again, *flag]) == 0
        assert wanted in capsys.readouterr().out


def test_int8_is_frozen_in_the_run_and_stands_in_its_results(
    folder: Path, capsys: pytest.CaptureFixture[str], int8: None
) -> None:
    wide = tiny_checkpoint("llama", folder / "wide", hidden_size=64, intermediate_size=128, head_dim=16)
    run_yaml = task_files(folder, wide, tune="{max_steps: 1, batch: 4}")
    assert main(["tune", str(run_yaml), "--set", "compute=int8"]) == 0
    said = capsys.readouterr().out
    assert "compute int8: as asked" in said and ": 14 linear layers" in said
    out = folder / "out"
    assert "compute: int8\n" in (out / "run.yaml").read_text()
    assert json.loads((out / "evaluations" / "tuned" / "result.json").read_text())["compute"] == "int8"
    assert main(["tune", str(run_yaml), "--resume"]) == 0 and "compute int8" in capsys.readouterr().out
    assert main(["tune", str(run_yaml), "--resume", "--set", "compute=bf16"]) == 2


def test_pack_says_what_it_wrote_and_does_it_once(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(model), str(folder / "packed")]) == 0
    assert "linear layers in nf4" in capsys.readouterr().out
    assert main(["pack", str(model), str(folder / "packed")]) == 0
    assert "already" in capsys.readouterr().out
    assert main(["generate", str(folder / "packed"), "hello", "--max-new-tokens", "2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan", "nowhere/at-all.yaml"], 2, "no such file"),
        (["plan", "lama-3.1-8b"], 2, "llama"),
        (["plan", "llama-3.1-8b", "--lora-targets", "w1"], 2, "q_proj"),
        (["plan", "llama-3.1-8b", "--lora-rank", "0"], 2, "rank"),
        (["plan", "llama-3.1-8b", "--memory", "lots"], 2, "amount of memory"),
        (["plan", "llama-3.1-8b", "--memory", "1GB"], 3, ""),
        (["plan", "llama-3.1-8b", "--lora-rank", "5000"], 2, "--lora-rank must be at least 1 and at most 4096"),
        (["plan", "llama-3.1-8b", "--lora-targets", ""], 2, "--lora-targets names no layer"),
        (["plan", "llama-3.1-8b", "--sequence", "3"], 2, "--sequence must be at least 4"),
        (["plan", "llama-3.1-8b", "--batch", "0"], 2, "--batch must be at least 1"),
        (["plan", "llama-3.1-8b", "--memory", "8"], 2, "needs its unit"),
        (["generate", "llama-3.1-8b", "hi"], 2, "write the hub id, meta-llama/Llama-3.1-8B"),
        (["pack", "qwen3-0.6b", "{folder}/out"], 2, "only `halfbyte plan` knows"),
        (["evaluate", "qwen3-0.6b", "--task", "{demo}/task.yaml"], 2, "short name"),
        (["generate", "{model}", "hi", "--device", "T4"], 2, "halfbyte plan MODEL|RUN --device 'T4'"),
        (["generate", "{folder}", "hi"], 1, "config.json"),
        (["generate", "./nowhere", "hi"], 1, "nowhere"),
        (["generate", "{model}", "hi", "--device", "cuda"], 2, "device"),
        (["generate", "{model}", "hi", "--device", "gpu"], 2, "unknown device"),
        (["generate", "{model}", "hi", "--adapter", "{folder}"], 1, "adapter"),
        (["generate", "{model}", "hi", "--max-new-tokens", "0"], 2, "at least 1"),
        (["evaluate", "{model}", "--task", "{folder}/none.yaml"], 2, "no such file"),
        (["evaluate", "{model}", "--task", "{folder}/task.yaml", "--variant", "../x"], 2, "no name of a folder"),
        (["compare", "{folder}"], 2, "two results"),
        (["compare", "{folder}", "{folder}"], 2, "compared with itself"),
        (["compare", "{folder}", "{model}"], 1, "result.json"),
        (["report", "{folder}"], 2, "no run"),
        (["plan", "--check", "{folder}"], 2, "no run"),
        (["plan", "--check"], 2, "no run is named"),
        (["plan", "llama-3.2-1b", "--link", "50GB/s"], 2, "add --gpus N"),
        (["plan", "llama-3.2-1b", "qwen3-0.6b", "--gpus", "2"], 2, "planned for one model"),
        (["plan", "--check", "{folder}", "{folder}"], 2, "at a time"),
        (["plan", "--check", "{folder}", "--sources", "--device", "T4"], 2, "found: --sources, --device"),
        (["plan", "--check", "{folder}", "--memory", "8GB", "--gpus", "0"], 2, "found: --memory, --gpus"),
        (["generate", "{folder}/nowhere", "hi"], 1, "no such folder"),
        (["generate", "nowhere.yaml", "hi"], 1, "no such file"),
        (["tune", "{folder}/none.yaml"], 2, "no such file"),
        (["pack", "{model}", "{model}"], 1, ""),
    ],
)
def test_a_mistake_is_one_clear_error(
    arguments: list[str], code: int, said: str, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = Path(halfbyte.__file__).parent / "demo"
    assert main([text.format(folder=folder, model=model, demo=demo) for text in arguments]) == code
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    if code != 3:
        assert error.startswith("error: ")


def test_options_without_a_run_are_no_report(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_yaml = task_files(folder, model)
    assert main(["report", str(folder)]) == 1 and "nothing of a run but its options" in capsys.readouterr().err
    assert main(["report", str(run_yaml)]) == 2 and "no such folder" in capsys.readouterr().err
    assert main(["plan", "--check", str(folder)]) == 1 and "no measured.json" in capsys.readouterr().err
    assert not list(folder.glob("**/report.html"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "{train: none.jsonl}"}, "none.jsonl"),
        ({"data": "{train: empty.jsonl}"}, "empty.jsonl"),
        ({"data": "{train: train.jsonl, template: {prompt: '{nmae}', completion: '{n}'}}"}, "nmae"),
        ({"data": "{}"}, "no training data"),
        ({"weights": "nf5"}, "nf4-single"),
        ({"device": "cuda"}, "device"),
        ({"device": "T4"}, "is for planning"),
        ({"model": "llama-3.1-8b"}, "write the hub id, meta-llama/Llama-3.1-8B"),
        ({"model": "nowhere/at/all"}, "nowhere"),
        ({"model": "nope"}, "a hub id, which reads 'owner/name'"),
        ({"task": "broken.yaml"}, "no number"),
        ({"memory": "8"}, "needs its unit"),
        ({"task": "none.yaml"}, "none.yaml"),
        ({"adapter": "{targets: [w1]}"}, "q_proj"),
        ({"memory": "8 apples"}, "amount of memory"),
        ({"data": "{train: train.jsonl, max_tokens: 4}"}, "max_tokens"),
    ],
)
def test_a_mistake_in_a_run_is_found_before_anything_is_trained(
    changes: dict[str, str], said: str, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.jsonl").write_text("")
    (folder / "words.jsonl").write_text('{"prompt": "a", "completion": "no number"}\n')
    (folder / "broken.yaml").write_text("kind: number\ndata: words.jsonl\n")
    changes = dict(changes)
    model = Path(changes.pop("model", model))
    assert main(["tune", str(task_files(folder, model, **changes))]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert "  do: " in error and not (folder / "out").exists()


def test_a_run_without_validation_on_the_reference_kernels(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALFBYTE_KERNELS", "reference")
    run_yaml = task_files(folder, model, data="{train: train.jsonl, validation: 0}")
    assert main(["tune", str(run_yaml)]) == 0
    assert (folder / "out" / "comparison.json").is_file()


def test_a_base_score_of_other_weights_at_the_same_place_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, run_yaml = tiny_checkpoint("llama", folder / "model"), task_files(folder, folder / "model")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("halfbyte.tune.run.run_training", killed)
        assert main(["tune", str(run_yaml)]) == 130
    tiny_checkpoint("llama", place, seed=1)
    assert main(["tune", str(run_yaml), "--resume"]) == 0
    base, tuned = (json.loads((folder / "out" / "evaluations" / name / "result.json").read_text())["fingerprints"]
                   for name in ("base-nf4", "tuned"))  # fmt: skip
    assert base["model"] == tuned["model"]


def test_what_does_not_fit_is_refused_whoever_chose_it(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_yaml = task_files(folder, model, memory="100MB")
    assert main(["tune", str(run_yaml)]) == 3
    assert main(["tune", str(run_yaml), "--set", "tune.micro_batch=2", "--set", "tune.recompute=1"]) == 3
    assert "does not fit" in capsys.readouterr().err
    assert not (folder / "out").exists()
    assert main(["plan", str(run_yaml)]) == 3


def test_what_can_not_fit_is_refused_before_anything_is_packed_or_loaded(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one item of four tokens would fit."""
    from halfbyte.model import build

    monkeypatch.setattr(build, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    run_yaml = task_files(folder, model, memory="100MB")
    assert main(["tune", str(run_yaml)]) == 3
    said = capsys.readouterr().err
    assert "items of 4 tokens" in said and "--force" in said and not (folder / "out").exists()
    assert "no option helps" in said and "takes at least 0.3" in said and "max_tokens" not in said


def test_force_goes_past_the_refusal(model: Path, folder: Path) -> None:
    run_yaml = task_files(folder, model, memory="100MB")
    assert main(["tune", str(run_yaml), "--force"]) == 0


def test_the_plan_of_a_run_is_for_its_device(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfbyte.plan import devices
    from halfbyte.plan.machine import CudaDevice

    monkeypatch.setattr(devices, "cuda_devices", lambda: (CudaDevice("Tesla T4", 16 * 10**9, 15 * 10**9),))
    run_yaml = task_files(folder, model, device="cuda")
    assert main(["plan", str(run_yaml), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["device"]["name"] == "Tesla T4" and plan["memory_bytes"] == 15 * 10**9
    assert (
        plan["phases"]["tune"]["parts"]["weights"] > 0 and plan["settings"]["dtype_bytes"] == 2
    )  # fp16: it has no bf16
    assert main(["plan", str(run_yaml), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"]["kind"] == "cpu"


def test_several_devices_on_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3.1-8b", "--device", "24GB", "--gpus", "4", "--link", "50GB/s"]) == 0
    said = capsys.readouterr().out
    assert "4 devices, on paper" in said and "assumed: each rank sends 50 GB/s" in said
    assert main(["plan", "llama-3.1-8b", "--gpus", "0"]) == 2
    assert main(["plan", "llama-3.1-8b", "--device", "T5"]) == 2


def test_an_item_beyond_the_context_is_named(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_yaml = task_files(folder, model)
    long = {"prompt": "word " * 60, "completion": "1.00", "n": 1}
    (folder / "train.jsonl").write_text((folder / "train.jsonl").read_text() + json.dumps(long) + "\n")
    assert main(["tune", str(run_yaml)]) == 1
    assert "context" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m halfbyte tune --options"
    for what in (command, f"{sys.executable} -m halfbyte plan llama-3.2-1b"):
        done = subprocess.run(["bash", "-c", f"{what} | head -n 1"], capture_output=True, text=True)
        assert "Traceback" not in done.stderr and len(done.stdout.splitlines()) == 1
        nobody, output = os.pipe()
        os.close(nobody)
        done = subprocess.run(what.split(), stdout=output, stderr=subprocess.PIPE, text=True)
        os.close(output)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["evalute", "x"], "did you mean evaluate? Else see: halfbyte --help"),
        (["plan", "llama-3.1-8b", "--wieghts=nf4"], "did you mean --weights? Else see: halfbyte plan --help"),
        (["plan", "llama-3.1-8b", "--w", "nf4"], "did you mean --weights? Else see: halfbyte plan --help"),
        (["plan", "llama-3.1-8b", "--lora", "8"], "did you mean --lora-rank or --lora-targets? Else see"),
        (["plan", "llama-3.1-8b", "--zzz"], "do: see: halfbyte plan --help"),
        (["qqq"], "do: see: halfbyte --help"),
        (["--json", "plan", "llama-3.1-8b"], "do: write --json after the verb; else see: halfbyte plan --help"),
        (["--debug", "plan", "nowhere-9b"], "the catalogue has no model"),
    ],
)
def test_what_is_nearly_a_verb_or_an_option_is_named(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert hint in capsys.readouterr().err


def test_waiting_threads_do_not_spin_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, policy, expected in ((None, None, "10000"), ("7", None, "7"), (None, "active", None)):
        for name, value in (("GOMP_SPINCOUNT", given), ("OMP_WAIT_POLICY", policy)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        main(["plan", "--list"])
        assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_a_fault_of_ours_is_told_without_a_traceback_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LookupError("of its own")

    monkeypatch.setattr("halfbyte.plan.doctor.doctor", broken)
    assert main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert "of its own" in error and "--debug" in error and "Traceback" not in error
    for words in (["--debug", "doctor"], ["doctor", "--debug"]):
        with pytest.raises(LookupError):
            main(words)
