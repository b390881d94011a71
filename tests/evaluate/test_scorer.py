from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from halfbyte.errors import ConfigError, HalfbyteError
from halfbyte.evaluate.scorer import describe_scorer, load_scorer, score


def written(folder: Path, text: str, function: str = "score") -> str:
    (folder / "scorer.py").write_text(text)
    return f"{folder / 'scorer.py'}:{function}"


GOOD = """
import dataclasses


@dataclasses.dataclass
class Rule:
    share: float = 0.5


def score(answer, reference, record):
    return answer == reference or Rule().share * record["weight"]
"""


def test_a_function_scores(tmp_path: Path) -> None:
    named = written(tmp_path, GOOD)
    function = load_scorer(named)
    assert score(function, named, "a", "a", {"weight": 1}, "t:1") == 1.0  # True is 1
    assert score(function, named, "a", "b", {"weight": 3}, "t:1") == 1.5


def test_the_fingerprint_knows_the_file_and_does_not_run_it(tmp_path: Path) -> None:
    named = written(tmp_path, "raise SystemExit")
    assert describe_scorer(named) == {"function": "score", "sha256": hashlib.sha256(b"raise SystemExit").hexdigest()}
    with pytest.raises(ConfigError, match="can't be read"):
        describe_scorer(f"{tmp_path}/nowhere.py:score")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", r"scorer.py:1.*SyntaxError"),
        ("\nimport nowhere_at_all", r"scorer.py:2.*ModuleNotFoundError"),
        ("raise SystemExit(3)", r"scorer.py:1.*SystemExit: 3"),
        ("def other(a, b, c): pass", r"no function 'score'.*functions: other"),
        ("score = 5", r"no function 'score'.*functions: none"),
    ],
)
def test_a_file_that_is_of_no_use(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        load_scorer(written(tmp_path, text))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('so')", r"fails on the item t.jsonl:7.*scorer.py:3.*ValueError: so.*'the answer'"),
        ("raise SystemExit", r"fails on the item t.jsonl:7.*SystemExit"),
        ("return None", r"no number for the item t.jsonl:7.*scorer.py:score.*None"),
        ("return '0.5'", r"no number.*'0.5'"),
        ("return float('nan')", r"no number.*nan"),
        ("return [1]", r"no number"),
    ],
)
def test_a_function_that_fails_names_the_item(tmp_path: Path, body: str, said: str) -> None:
    named = written(tmp_path, f"\ndef score(answer, reference, record):\n    {body}\n")
    with pytest.raises(HalfbyteError, match=f"(?s){said}"):
        score(load_scorer(named), named, "the answer", "b", {}, "t.jsonl:7")
