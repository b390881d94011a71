"""Planned against measured from the files alone: the differences, and clear errors for what can't be read."""

import json
import subprocess
import sys

import pytest

from halfbyte.cli import main
from halfbyte.errors import DataError
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.measured import against, checked, parts_of, planned_phase, read, share


def phase(peak, **parts):
    return {"peak_bytes": peak, "mapped_bytes": 10, "seconds": 2.0, "parts": parts_of(peak, parts)}


def write_measured(folder, **changes):
    """A run of the 1B Llama whose adapter and tuning were measured."""
    plan = plan_model("llama-3.2-1b", memory="8GB").to_json() | {"expected": {"seconds": 4.0}}
    exact = {"weights": plan["held_bytes"]["weights"], "constants": 1, "adapter": plan["adapter_bytes"]}
    peak = 2 * planned_phase(plan, "tune")["peak_bytes"]
    measured = {"schema": 1, "run": {}, "finished": True, "method": "sampled", "exact": exact,
                "phases": {"open": phase(500), "tune": phase(peak, adapter=exact["adapter"])}} | changes  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text("model: x\n")
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "measured.json").write_text(json.dumps(measured))
    return plan, measured


def test_differences_are_shares_of_what_was_planned(tmp_path):
    check = against(*write_measured(tmp_path))
    tune = check["phases"]["tune"]
    assert tune["difference"] == {"peak": 1.0, "seconds": -0.5}
    assert sum(tune["measured"]["parts"].values()) == tune["measured"]["peak_bytes"]
    assert list(check["phases"]) == ["open", "tune"]  # nothing was packed, there was no task
    assert check["exact"]["adapter"]["difference_bytes"] == check["exact"]["weights"]["difference_bytes"] == 0
    assert check["exact"]["constants"]["difference_bytes"] < 0
    assert check["exact"]["optimiser"]["measured"] is check["exact"]["optimiser"]["difference_bytes"] is None
    unfinished = against(*write_measured(tmp_path, finished=False))["phases"]
    assert list(unfinished) == ["pack", "open", "evaluate_before", "tune", "evaluate_after"]
    assert unfinished["pack"]["measured"] is None and unfinished["pack"]["difference"]["peak"] is None


def test_phases_that_the_run_does_not_have_are_not_awaited(tmp_path, capsys):
    write_measured(tmp_path, finished=False, has=["open", "tune"])
    assert list(against(*read(tmp_path))["phases"]) == ["open", "tune"]
    assert main(["plan", "--check", str(tmp_path)]) == 0
    assert "not measured" not in capsys.readouterr().out
    write_measured(tmp_path, has=["open", "evaluate_before", "tune"])  # finished, but that one was made elsewhere
    assert main(["plan", "--check", str(tmp_path)]) == 0
    assert "not measured: evaluate before" in capsys.readouterr().out


def test_a_run_that_was_killed_before_its_training_shows_what_is_there(tmp_path, capsys):
    out = tmp_path / "out"
    write_measured(out, finished=False, has=["pack", "open", "tune"], phases={"open": phase(500_000_000)})
    (out / "run.yaml").unlink()
    (out / "plan.json").unlink()
    (tmp_path / "run.yaml").write_text("model: x\nout: out\n")
    for named in (out, tmp_path / "run.yaml"):
        assert main(["plan", "--check", str(named)]) == 0
        said = capsys.readouterr().out
        assert "500 MB" in said and "not measured yet: pack, tune" in said and "did not come to its training" in said
    assert main(["plan", "--check", str(out), "--json"]) == 0
    opened = json.loads(capsys.readouterr().out)["phases"]["open"]
    assert opened["planned"]["peak_bytes"] is None and opened["measured"]["peak_bytes"] == 500_000_000


def test_a_largest_resident_set_is_not_held_against_the_plan(tmp_path, capsys):
    card = phase(9, rest=7) | {"cuda_peak_bytes": 7}
    plan, taken = write_measured(tmp_path, method="largest resident set")
    tune = against(plan, taken)["phases"]["tune"]
    assert tune["difference"] == {"peak": None, "seconds": -0.5} and tune["measured"]["peak_bytes"] > 0
    assert against(plan, taken | {"phases": {"tune": card}})["phases"]["tune"]["difference"]["peak"] is not None
    assert main(["plan", "--check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "+100.0 %" not in said and "measured as largest resident set" in said


def test_parts_sum_to_the_peak():
    assert parts_of(100, {"adapter": 30, "gradients": None}) == {"adapter": 30, "rest": 70}
    assert parts_of(None, {"adapter": 30}) == {}
    assert share(None, 3) is share(3, None) is share(0, 3) is None and share(4, 3) == -0.25


def test_of_a_card_what_torch_allocates_is_compared_without_the_context():
    plan = plan_model("llama-3.2-1b", device="T4").to_json()
    tune = planned_phase(plan, "tune")
    assert "context" in plan["phases"]["tune"]["parts"] and "context" not in tune["parts"]
    card = {"peak_bytes": 9, "cuda_peak_bytes": 7, "mapped_bytes": 0, "seconds": 1.0, "parts": {"rest": 7}}
    found = against(plan, {"exact": {}, "phases": {"tune": card}, "finished": True})
    assert found["phases"]["tune"]["measured"]["peak_bytes"] == 7


def test_it_is_shown_and_printed_as_json_without_torch(tmp_path, capsys):
    write_measured(tmp_path)
    assert main(["plan", "--check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert (
        "no planned time: open; the length" in said
        and "+100.0 %" in said
        and "-50.0 %" in said
        and "tune, planned" in said
        and "measured" in said
    )
    code = f"import sys; from halfbyte.cli import main; main(['plan', '--check', {str(tmp_path)!r}, '--json'])\n"
    code += "assert not {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert set(found) == {"schema", "run", "finished", "method", "time_reason", "phases", "exact"} and found[
        "run"
    ] == str(tmp_path)
    assert set(found["phases"]["tune"]) == {"planned", "measured", "difference"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("measured.json", None, "unfinished"),
        ("plan.json", None, "no plan.json"),
        ("measured.json", "{", "can't be read"),
        ("plan.json", "[]", "no JSON object"),
        ("measured.json", "{}", "phases is no object"),
        ("measured.json", '{"schema": 2, "phases": {}, "exact": {}}', "schema is 2"),
        ("measured.json", '{"schema": 1, "phases": {"dance": {}}, "exact": {"weights": "1"}}', "'dance'"),
        ("measured.json", '{"schema": 1, "phases": {"tune": {"parts": {"rest": NaN}}}, "exact": {}}', "tune.rest"),
        ("measured.json", '{"schema": 1, "phases": {"tune": 3}, "exact": {}}', "has no parts"),
        ("measured.json", '{"schema": 1, "phases": {}, "exact": {}, "run": [], "finished": 1}', "run is no object"),
        ("measured.json", '{"schema": 1, "phases": {"tune": {"parts": {}}}, "exact": {}}', "tune has no peak_bytes"),
        ("plan.json", '{"schema": 1}', "phases is no object"),
        (
            "plan.json",
            '{"schema": 1, "phases": {"tune": {"parts": {"x": "y"}, "peak_bytes": []}}}',
            "tune.peak_bytes is no",
        ),
        ("measured.json", '{"schema": 1, "has": ["dance", []], "phases": {}, "exact": {}}', "has is no list of phases"),
    ],
)
def test_what_can_not_be_read_is_one_clear_error(tmp_path, capsys, name, text, said):
    write_measured(tmp_path)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    assert main(["plan", "--check", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert said in error and name in error and "do: " in error and "Traceback" not in error


def test_all_faults_of_a_file_are_in_one_error(tmp_path):
    with pytest.raises(DataError, match=r"schema(.|\n)*phases(.|\n)*exact"):
        checked({}, tmp_path / "measured.json")
    with pytest.raises(DataError):
        read(tmp_path)


def test_a_plan_of_another_hand_says_nothing_instead_of_breaking():
    found = against({"phases": 3, "held_bytes": [], "adapter_bytes": "x"}, {"exact": {}, "phases": {}})
    assert all(one["planned"] is None for one in found["exact"].values())
    assert all(one["planned"]["peak_bytes"] is None for one in found["phases"].values())
