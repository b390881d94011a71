from __future__ import annotations

import io

from rich.console import Console

from halfbyte.evaluate.show_details import print_details


def printed(found: dict[str, object]) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    print_details({"details": found}, console)
    return console.file.getvalue()


def test_nothing_is_printed_of_a_result_without_details() -> None:
    console = Console(file=io.StringIO(), width=160)
    print_details({}, console)
    assert not console.file.getvalue().strip()


def test_classes_come_with_the_lowest_f1_first_and_some_are_left_out() -> None:
    rows = [{"class": f"c{k:02}", "precision": None if k == 3 else 0.5, "recall": 0.25, "f1": k / 20, "support": 9,
             "answered": 1} for k in range(15)]  # fmt: skip
    text = printed({"classes": rows[::-1], "confusions": [{"reference": "[bold]x[/bold]", "answer": "", "count": 7}]})
    assert "12 of 15" in text and text.index("c00") < text.index("c01") and "c11" in text and "c12" not in text
    assert "25.0 %" in text and "-" in text and "[bold]x[/bold]" in text and "(none)" in text


def test_calibration_says_what_its_slope_means() -> None:
    bins = [{"low": 1.0, "high": 2000.0, "n": 20, "predicted": 1234.5, "true": 9.0}]
    text = printed({"calibration": {"n": 20, "slope": {"value": 0.5, "low": 0.4, "high": 0.61}, "bins": bins}})
    assert "1 to 2,000" in text and "slope 0.5 (95 % interval 0.4 to 0.61)" in text and "too extreme" in text
    assert "there is no slope" in printed({"calibration": {"n": 20, "slope": None, "bins": bins}})
    assert not printed({"calibration": {"n": 0, "slope": None, "bins": []}}).strip()


def test_fields_and_the_worst_items() -> None:
    worst = [{"id": "x", "prompt": "p" * 100, "answer": None, "reference": "r\nr", "score": 12.345678}] * 9
    fields = [{"field": "size.pieces", "value": 0.5, "low": 0.4, "high": 0.6, "n": 30}]
    text = printed({"worst": worst, "fields": fields})
    assert text.count("12.35") == 3 and "… " + "p" * 60 in text and "r r" in text
    assert "size.pieces" in text and "50.0 %" in text and "40.0 % to 60.0 %" in text
