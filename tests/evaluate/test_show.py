from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from halfbyte.evaluate.compare import compare_folders
from halfbyte.evaluate.listing import list_results
from halfbyte.evaluate.metrics import METRICS
from halfbyte.evaluate.results import read_evaluation, same_answer, summarise, write_evaluation
from halfbyte.evaluate.show import ShownResult, figure, interval, print_comparison, print_result, print_results
from tests.evaluate.test_compare import exact, numbers


def printed(show: object, what: object) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    show(what, console)
    return console.file.getvalue()


def test_figures_have_units() -> None:
    metrics = {metric.name: metric for kind in METRICS.values() for metric in kind}
    assert figure(0.123, metrics["within"]) == "12.3 %"
    assert figure(0.021, metrics["within"], sign=True) == "+2.1 pp"
    assert figure(-12.3456, metrics["mae"], sign=True) == "-12.35"
    assert figure(1234567.0, metrics["mae"]) == "1,234,567"
    assert figure(1.5, metrics["loss"]) == "1.5 nats/token"
    assert figure(None, metrics["mae"]) == "-" and interval(None, None, metrics["mae"]) == "-"
    assert interval(0.1, 0.2, metrics["within"]) == "10.0 % to 20.0 %"
    assert interval(-1.25, 2000.4, metrics["loss"], sign=True) == "-1.25 to +2,000"


def test_a_result_shows_every_metric_with_its_direction(tmp_path: Path) -> None:
    evaluation = read_evaluation(numbers(tmp_path / "a", [10.0, None, 30.0], [10.0, 20.0, 31.0]))
    more = {"seconds": 2.0, "tokens_per_second": 33.0, "peak_bytes": 2 * 10**9, "mapped_bytes": None}
    text = printed(print_result, evaluation.result | more)
    for name in ("mae ↓", "within ↑", "unanswered ↓", "33.3 %"):
        assert name in text
    assert "2.0 s, 33 tokens/s; peak memory 2.00 GB" in text and "lower is better" in text
    assert "only 3 independent items" in text and "at random" not in text
    assert "choosing at random scores 1.3 %; 2.0 s" in printed(
        print_result, evaluation.result | more | {"chance_level": 1 / 77}
    )


@pytest.mark.parametrize("kind", [numbers, exact])
def test_a_comparison_says_its_verdict(tmp_path: Path, kind: object) -> None:
    if kind is numbers:
        truth = [float(k) for k in range(100, 220)]
        a, b = (kind(tmp_path / n, [None, *(t + e + t % 3 for t in truth[1:])], truth) for n, e in (("a", 9), ("b", 1)))
    else:
        a, b = kind(tmp_path / "a", [False] * 30 + [True] * 90), kind(tmp_path / "b", [True] * 120)
    text = printed(print_comparison, compare_folders(a, b))
    assert "better" in text and "b against a" in text and "difference: b less a; " in text
    assert ("mae ↓" if kind is numbers else "exact_match ↑") in text
    assert ("119 items that both answered" in text) == (kind is numbers)


def test_text_from_files_is_never_markup(tmp_path: Path) -> None:
    found = compare_folders(*(exact(tmp_path / name, [True, False]) for name in ("a", "b")))
    assert "[bold]x[/bold]" in printed(print_comparison, found | {"task": "[bold]x[/bold]"})


def harness_result(folder: Path, metric: str, form: str, better: str, values: list[float]) -> Path:
    """A result of a harness's task with one metric of items."""
    declared = {metric: {"better": better, "form": form}}
    lines = [{"id": f"i{k}", "group": None, "prompt": f"p{k}", "answer": "a", "reference": "b", "parsed": "a",
              "scores": {metric: value}} for k, value in enumerate(values)]  # fmt: skip
    metrics, warnings = summarise("harness", lines, 0, declared)
    parts = {"kind": "harness", "metrics": declared}
    result = {"schema": 1, "task": "t", "kind": "harness", "fingerprint": "f", "fingerprint_parts": parts,
              "variant": folder.name, "items": len(lines), "unanswered": 0.0, "metrics": metrics, "warnings": warnings,
              "model": "m", "weights": "nf4", "adapter": None}  # fmt: skip
    write_evaluation(folder, result, lines)
    return folder


def test_shares_of_the_harness_are_per_cent_as_ours(tmp_path: Path) -> None:
    a, b = (harness_result(tmp_path / name, "acc,none", "right", "higher", [float(k % 3 == at) for k in range(60)])
            for at, name in enumerate("ab"))  # fmt: skip
    text = printed(print_result, read_evaluation(a).result)
    assert "33.3 %" in text and "0.33" not in text
    text = printed(print_comparison, compare_folders(a, b))
    assert "33.3 % -> 33.3 %" in text and "pp" in text and "0.33" not in text
    text = printed(print_results, list_results(tmp_path))
    assert "33.3 %" in text and "0.33" not in text
    html = ShownResult(read_evaluation(a).result)._repr_html_() + compare_folders(a, b)._repr_html_()
    assert html.count("33.3 %") == 3 and "0.33" not in html
    text = printed(print_result, read_evaluation(harness_result(tmp_path / "c", "ter", "mean", "lower", [0.5])).result)
    assert "0.5" in text and "%" not in text.replace("95 %", "")


def test_shares_of_fields_and_f1_are_per_cent_too() -> None:
    metrics = {metric.name: metric for kind in METRICS.values() for metric in kind}
    assert figure(1 / 3, metrics["field_accuracy"]) == figure(1 / 3, metrics["macro_f1"]) == "33.3 %"
    assert figure(1 / 3, metrics["rouge_l"]) == "0.3333"


def test_results_of_one_variant_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    numbers(tmp_path / "one" / "base", [1.0, 2.0], [1.0, 2.0])
    numbers(tmp_path / "two" / "base", [1.0, 2.0], [1.0, 2.0])
    text = " ".join(printed(print_results, list_results(tmp_path)).split())
    assert "base in" in text and "one" in text and "two" in text  # the folders may be broken over lines


def test_one_answer_to_most_items_is_said() -> None:
    def lines(answers: str, references: str) -> list[dict[str, str]]:
        return [{"parsed": a, "reference": r} for a, r in zip(answers, references, strict=True)]

    assert same_answer(lines("aaaaaaab", "abcdefgh")) == [
        "one answer, a, to 88 % of the items: such a score says little of what it has understood"
    ]
    assert same_answer(lines("aaaabcde", "aaaabcde")) == []  # so are the references
    assert same_answer([{"parsed": None, "reference": "a"}]) == same_answer([]) == []
