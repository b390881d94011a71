"""The page: whole, self-contained, escaped, and honest about what is missing."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from halfbyte.errors import DataError
from halfbyte.report.page import in_words, report
from tests.report.synthetic import (
    base_answer,
    comparison,
    write_numbers,
    write_run,
    write_settings,
    write_steps,
    write_words,
)

VOID = {"meta", "br", "hr", "img", "input", "link"}
EMPTY_SVG = {"path", "use", "rect", "circle", "line"}


class Page(HTMLParser):
    """Checks that tags nest, and collects texts, ids and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        joined = " ".join(" ".join(self.texts).split())
        return joined.replace("\N{WORD JOINER}", "").replace("\N{NO-BREAK SPACE}", " ")


def page_of(folder: Path) -> Page:
    return Page(report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def source(full: Path) -> str:
    return report(full).read_text(encoding="utf-8")


def test_the_first_screen_answers_the_five_questions(source: str) -> None:
    text = Page(source).text
    head = text[: text.index("Memory", text.index("gets wrong"))]
    assert "Tuning made it better: mean absolute error" in head
    assert "Difference −$250.00 (95 % interval −$281.50 to −$220.25, p < 0.001); 70 wins, 8 losses, 2 ties" in head
    assert "without an answer" in head
    assert re.search(r"Base model \$[\d,.]+ mean absolute error of base-nf4 95 % interval", head)
    assert "600 MB peak of tuning, measured 640 MB planned" in head
    assert "Always answering the training median scores" in head
    assert "the tuned model beats it" in head
    assert "The largest errors of tuned" in head


def test_it_shows_every_part(source: str) -> None:
    page = Page(source)
    titles = {value for tag, name, value in page.attributes if (tag, name) == ("figure", "aria-label")}
    starts = ("What the model weighs, areas to scale", "Planned and measured", "Loss and learning rate", "base-nf4: ",
              "tuned: ", "Differences with 95 %")  # fmt: skip
    assert all(any(title.startswith(start) for title in titles) for start in starts)
    for text in ("adapter 2.52 MB", "NF4 5.42 MB", "loss (nats a token)", "optimiser step", "always $14.99", "true ($)",
                 "tuned − base-nf4", "no detectable difference", "Drawn by lot", "Worst", "Best", "A Processor", "f00d",
                 "median guess", "SHA-256", "630,784 of 8,106,240 parameters"):  # fmt: skip
        assert text in page.text, text


def test_it_stands_alone(source: str) -> None:
    text, page = source, Page(source)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert "://" not in text
    assert "@import" not in text
    links = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "style")]
    assert all(value.startswith("#") for value in links if "url(" not in value and ":" not in value)
    assert all(reference in page.ids for reference in re.findall(r"""(?:url\(|href=")#([^)"]+)""", text))
    assert len(page.ids) == len(set(page.ids))
    assert "default-src 'none'" in text
    assert not [value for _, name, value in page.attributes if name.startswith("on")]


def test_pictures_follow_the_page_in_light_dark_and_print(source: str) -> None:
    text = source
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    body = text[text.index("<body>") :]
    assert re.findall(r"#[0-9a-fA-F]{6}\b", body) == []  # only the page's variables colour the pictures
    used, declared = set(re.findall(r"var\(--([a-z]+)\)", text)), set(re.findall(r"--([a-z]+):", text))
    assert used <= declared


def test_the_same_run_makes_the_same_page(full: Path, source: str) -> None:
    assert report(full).read_text(encoding="utf-8") == source


def test_markup_in_what_models_and_data_say_is_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" $a_b$ {{ 7 * 7 }}"
    folder = write_run(
        tmp_path / "run", items=20, base=lambda lot, true: evil, tuned=lambda lot, true: f"{true} {evil}"
    )
    (folder / "run.yaml").write_text("model: '<b>models</b>'\nweights: nf4\n")
    file = folder / "evaluations" / "tuned" / "predictions.jsonl"
    file.write_text(file.read_text().replace("LEGO set", "</td><script>LEGO"))
    result = folder / "evaluations" / "tuned" / "result.json"
    values = json.loads(result.read_text()) | {"task": "<i>task</i>", "warnings": ["<u>few</u>"]}
    result.write_text(json.dumps(values))
    (folder / "evaluations" / "base-bf16").rename(folder / "evaluations" / "<script>b<")
    made = comparison("<script>b<", "tuned", "mae", {"value": -1, "low": -2, "high": -0.5}, "<b>better", (1, 2, 3))
    (folder / "comparisons" / "evil.json").write_text(json.dumps(made))
    text = report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags & {"script", "img", "b", "i", "u"}
    assert html.escape(evil, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    for shown in (evil, "<i>task</i>", "<b>models</b>", "</td><script>LEGO", "<u>few</u>", "<b>better"):
        assert " ".join(shown.split()) in page.text
    assert "tuned − <script>b<" in page.text  # in a picture


def test_a_bare_run_names_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    write_settings(tmp_path / "run")
    (tmp_path / "run" / "plan.json").unlink()
    text = page_of(tmp_path / "run").text
    assert "Nothing has been evaluated yet, so nothing is proven." in text
    for missing in ("No evaluation yet", "No plan of this run (plan.json)", "neither planned nor measured",
                    "metrics.jsonl", "No comparison yet", "No answers to show yet"):  # fmt: skip
        assert missing in text
    for command in (
        "halfbyte evaluate MODEL --task TASK.yaml --adapter DIR",
        "halfbyte compare A B",
        "halfbyte tune RUN.yaml",
    ):
        assert command in text
    assert "models/tiny-base" in text


def test_options_alone_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: models/tiny-base\nout: runs/here\n")
    with pytest.raises(DataError, match=r"nothing of a run but its options(.|\n)*runs/here"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_base_without_a_tuned_model(tmp_path: Path) -> None:
    write_numbers(tmp_path / "run", "base-bf16", "bf16", base_answer, 40)
    text = page_of(tmp_path / "run").text
    assert "Only base-bf16 has been evaluated" in text
    assert "What the base model gets wrong" in text
    assert "answer of base-bf16" in text
    assert "always $14.99" in text  # the fallback stands in result.json
    assert "Not there yet" in text  # neither options nor the machine


def test_a_run_without_a_task(tmp_path: Path) -> None:
    write_settings(tmp_path / "run")
    write_steps(tmp_path / "run", 5)
    text = page_of(tmp_path / "run").text
    assert "Nothing has been evaluated yet" in text
    assert "600 MB" in text
    assert "optimiser steps 5" in text


@pytest.mark.parametrize("kind", ["choice", "exact"])
def test_right_or_wrong_tasks(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    write_words(folder, "base-nf4", kind, 0.4)
    write_words(folder, "tuned", kind, 0.8)
    stored = folder / "evaluations" / "tuned" / "result.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"chance_level": 0.25 if kind == "choice" else None}))
    metric = "accuracy" if kind == "choice" else "exact_match"
    found = {"value": 0.11, "low": -0.02, "high": 0.24, "p": 0.09}
    made = comparison("base-nf4", "tuned", metric, found, "no detectable difference", (9, 3, 48))
    (folder / "comparison.json").write_text(json.dumps(made))
    text = page_of(folder).text
    assert f"No detectable difference: {metric.replace('_', ' ')}" in text
    assert "+11.0 points (95 % interval −2.0 to +24.0 points, p = 0.090)" in text
    assert "only the tuned model right" in text
    assert "The most frequent mistakes of tuned" in text
    assert ("Choosing at random scores 25.0 %; tuned does better." in text) == (kind == "choice")
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"chance_level": 0.9}))
    assert ("Choosing at random scores 90.0 %; tuned can't be shown to do better." in page_of(folder).text) == (
        kind == "choice"
    )
    assert any("No detectable difference" in line for line in in_words(folder))
    rights = {"both right": 0, "only the tuned model right": 0, "only the base right": 0, "both wrong": 0}
    counts = {name: int(re.search(rf"{name} (\d+)", text)[1]) for name in rights}  # type: ignore[index]
    assert sum(counts.values()) == 60


def test_loss_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_words(folder, "base-nf4", "loss", 0.4)
    write_words(folder, "tuned", "loss", 0.8)
    text = page_of(folder).text
    assert "Loss in nats a token" in text
    assert "no comparison says yet" in text
    assert "Each item before and after tuning" in text
    assert "nothing" not in text.partition("Answers before and after")[2]  # such a task has no answers


def test_evaluations_of_other_items_are_not_read_side_by_side_unwarned(source: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=20)
    result = folder / "evaluations" / "base-bf16" / "result.json"
    result.write_text(result.read_text().replace("f00d", "beef"))
    assert "so their scores do not compare: base-bf16; base-nf4, tuned, median" in page_of(folder).text
    assert "do not compare" not in Page(source).text


def test_broken_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=20)
    (folder / "plan.json").write_text('{"parameters": ')
    (folder / "comparisons" / "bases.json").write_text('"text"')
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 121, "lo')
    (folder / "evaluations" / "tuned" / "result.json").unlink()
    text = page_of(folder).text
    assert "run/plan.json can't be read" in text
    assert "line 121 of run/metrics.jsonl is broken and is left out" in text
    assert "evaluations/tuned has no result.json: that evaluation did not end" in text
    assert "comparisons/bases.json holds no comparison" in text
    assert "Only base-nf4 has been evaluated" in text


def test_no_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        report(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds nothing of a run"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_undefined_figures_do_not_break_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=12, base=lambda lot, true: "no idea")
    text = page_of(folder).text
    assert "100.0 % without an answer" in text
    assert "12 without a number, not drawn" in text
    plan = json.loads((folder / "plan.json").read_text())
    plan["weights_bytes"] = dict.fromkeys(plan["weights_bytes"])
    plan["phases"]["tune"] |= {"peak_bytes": None, "parts": {"activations": None}}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "learning_rate": 0.001}\n')
    text = page_of(folder).text
    assert "The plan holds no sizes of the weights" in text
    assert "not planned not measured" in text
