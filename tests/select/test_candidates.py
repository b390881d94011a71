"""What the command line asks for: candidates, formats, shots and budget, and one clear error for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.errors import ConfigError
from halfbyte.select.candidates import read_request, variant_name


def test_folders_hub_ids_and_names_of_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    asked = read_request(f"{tmp_path / 'mine'}, org/name@v2 ,llama-3.1-8b,./gone", "nf4,int8,nf4", "4,0", "12GB", own=1)
    assert [(one.kind, one.revision, one.label) for one in asked.candidates] == [
        ("folder", None, "mine"),
        ("hub", "v2", "name"),
        ("catalogue", None, "llama-3.1-8b"),
        ("folder", None, "gone"),
    ]
    assert asked.candidates[1].model == "org/name" and asked.candidates[3].model == "./gone"
    assert (asked.weights, asked.shots, asked.budget) == (("nf4", "int8"), (4, 0), 12 * 10**9)


def test_what_is_not_said() -> None:
    asked = read_request("org/name", None, None, None, own=2)
    assert (asked.weights, asked.shots, asked.budget) == (None, (2,), None)


def test_a_file_names_one_a_line_and_is_where_its_paths_begin(tmp_path: Path) -> None:
    (tmp_path / "models" / "one").mkdir(parents=True)
    file = tmp_path / "models" / "list.txt"
    file.write_text("one  # the small one\n\n# remark\norg/name\n")
    asked = read_request(str(file), None, None, None, own=0)
    assert [one.model for one in asked.candidates] == [str(file.parent / "one"), "org/name"]
    assert [one.label for one in asked.candidates] == ["one", "name"]


def test_labels_tell_candidates_apart() -> None:
    asked = read_request("./a/model,./b/model,org/model,./c d/x", None, None, None, own=0)
    assert [one.label for one in asked.candidates] == ["a-model", "b-model", "org-model", "x"]
    assert variant_name("x", "nf4", 0) == "x-nf4" and variant_name("x", "int8", 4) == "x-int8-4shot"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((" , ", None, None, None), "no candidate"),
        (("", None, None, None), "no candidate"),
        (("a,b,a", None, None, None), "stands twice"),
        (("gone.txt", None, None, None), "can't be read"),
        (("a", "nf5", None, None), "nf4"),
        (("a", ",", None, None), "no format"),
        (("a", None, "few", None), "whole numbers"),
        (("a", None, "0,65", None), "at most 64"),
        (("a", None, "-1", None), "whole numbers"),
        (("a", None, None, "12"), "unit"),
        (("a", None, None, "lots"), "amount of memory"),
        (("a", None, None, "0GB"), "amount of memory"),
    ],
)
def test_a_mistake_is_one_clear_error(arguments: tuple[str, str | None, str | None, str | None], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_request(*arguments, own=0)
    assert said in str(caught.value)
