"""Several models in one table; one that can't be planned does not take the others with it."""

import json

import pytest

from halfbyte.cli import main
from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.plan.compare import gather

GIVEN = ["--memory", "24GB"]


def test_one_that_fails_has_its_line_and_the_others_are_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["plan", "llama-3.2-1b", "lama-3.9-8b", "qwen3-0.6b", *GIVEN]) == ConfigError.exit_code
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert any("Llama-3.2-1B" in line and "fits" in line for line in lines)
    assert any("Qwen3-0.6B" in line and "fits" in line for line in lines)
    assert any(line.startswith("lama-3.9-8b ") and "error" in line for line in lines)
    assert "lama-3.9-8b: error: " in said and "did you mean" in said


def test_a_run_among_models_says_what_each_is_planned_for(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "140")
    run = tmp_path / "run.yaml"
    run.write_text("model: qwen3-0.6b\nadapter: {rank: 4}\ndata: {train: org/data, max_tokens: 99}\n")
    main(["plan", "llama-3.2-1b", str(run), *GIVEN])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("meta-llama/Llama-3.2-1B: rank 16, 512 tokens, 1 at once")
    assert lines[1].startswith("Qwen/Qwen3-0.6B: rank 4, 99 tokens")
    main(["plan", "llama-3.2-1b", "qwen3-0.6b", *GIVEN])
    assert capsys.readouterr().out.startswith("rank 16, 512 tokens, 1 at once in training, 16 in evaluation; 24.0 GB")


def test_weights_that_do_not_stay_in_memory_are_said_in_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["plan", "llama-3.2-3b", "llama-3.2-1b", "--memory", "3GB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("Llama-3.2-3B" in line and line.endswith("fits, weights from disk") for line in lines)


def test_a_name_has_its_room_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = ["llama-3.2-1b", "deepseek-v3", "./a/folder/with-a-rather-long-name/Llama-3.1-8B-Instruct"]
    main(["plan", *names, *GIVEN])
    lines = capsys.readouterr().out.splitlines()
    for name in ("meta-llama/Llama-3.2-1B", "deepseek-ai/DeepSeek-V3", names[2]):
        assert len(lines[lines.index(name) + 1]) <= 80
    assert lines[lines.index("deepseek-ai/DeepSeek-V3") + 1].endswith("does not fit")


def test_what_is_wrong_goes_to_stderr_as_well(capsys):
    for more in ([], ["--json"], ["--sources"], ["--sources", "--json"]):
        assert main(["plan", "llama-3.2-1b", "lama-3.9-8b", *([] if "--sources" in more else GIVEN), *more]) == 2
        told = capsys.readouterr()
        assert told.err.startswith("error: lama-3.9-8b: the catalogue has no model") and "do: " in told.err
        assert "Llama-3.2-1B" in told.out


def test_the_sources_of_the_others_are_shown(capsys, tmp_path):
    assert main(["plan", str(tmp_path), "llama-3.2-1b", "--sources", "--json"]) == 2
    first, second = json.loads(capsys.readouterr().out)["sources"]
    assert first["model"] == str(tmp_path) and set(first["error"]) == {"what", "where", "found", "do"}
    assert second["facts"]
    assert main(["plan", "lama-3.9-8b", "--sources", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_json_keeps_the_order_and_says_what_is_wrong(capsys, tmp_path):
    assert main(["plan", str(tmp_path), "llama-3.2-1b", "--json", *GIVEN]) == 2
    first, second = json.loads(capsys.readouterr().out)["plans"]
    assert first["model"] == str(tmp_path) and "no model" in first["error"]["what"]
    assert set(first["error"]) == {"what", "where", "found", "do"}
    assert second["parameters"] == 1_235_814_400


def test_where_all_fail_each_is_named(capsys, tmp_path):
    assert main(["plan", str(tmp_path), "lama-3.9-8b"]) == 2
    said = capsys.readouterr()
    assert f"error: {tmp_path}: " in said.err and said.err.count("lama-3.9-8b: ") == 1 and not said.out


def test_one_mistake_in_the_options_is_one_error(capsys):
    assert main(["plan", "llama-3.2-1b", "qwen3-0.6b", "--memory", "lots"]) == 2
    assert capsys.readouterr().err.count("amount of memory") == 1


def test_what_is_no_error_of_the_users_is_not_swallowed():
    def broken(model):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gather(["a", "b"], broken)

    def refused(model):
        raise CheckpointError(f"{model} is broken")

    assert [str(row.error) for row in gather(["a", "b"], refused)] == ["a is broken", "b is broken"]


def test_the_words_of_one_name_are_one_error():
    def unknown(model):
        raise ConfigError(f"the catalogue has no model '{model}'")

    with pytest.raises(ConfigError, match="the words of one model") as caught:
        gather(["llama", "3.1", "8b"], unknown)
    assert str(caught.value.do) == "write llama-3.1-8b"
