"""Planned against measured on the page: by phase and part where the run measured itself, else by its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halfbyte.report.memory import compared_phases, exact_facts, phase_facts
from halfbyte.report.read import gather
from tests.report.synthetic import write_run
from tests.report.test_page import page_of

EVIL = "<script>alert(1)</script> & $x$"


def write_measured(folder: Path, **parts: Any) -> Path:
    write_run(folder, items=12)
    phase = {"peak_bytes": 600_000_000, "mapped_bytes": 1, "seconds": 20.0,
             "parts": {"adapter": 2_523_136, "rest": 597_476_864} | parts}  # fmt: skip
    exact = {"adapter": 2_523_136, "gradients": 2_523_136 + 8, "optimiser": None}
    found = {"schema": 1, "run": {}, "finished": False, "method": "sampled", "exact": exact, "phases": {"tune": phase}}
    (folder / "measured.json").write_text(json.dumps(found))
    return folder


def test_a_run_that_measured_itself_is_shown_phase_by_phase(tmp_path: Path) -> None:
    folder = write_measured(tmp_path / "run")
    rows = {name: (planned, measured) for name, planned, measured in compared_phases(gather(folder))}
    assert list(rows) == ["pack", "open", "evaluate before", "tune", "evaluate after"]
    assert rows["tune"][0]["activations"] == 280e6 and rows["tune"][1]["rest"] == 597_476_864 and not rows["open"][1]
    facts = dict(phase_facts(gather(folder)))
    assert "600 MB (−6.2 %)" in facts["tune"].replace("\N{NO-BREAK SPACE}", " ") and "20 s" in facts["tune"]
    assert facts["open"] == "not measured yet"
    assert exact_facts(gather(folder)) == [
        ("adapter", "2,523,136, as planned"), ("gradients", "2,523,144, +8 against the plan")
    ]  # fmt: skip
    page = page_of(folder)
    for text in ("Phase by phase, measured", "Counted to the byte", "measured 600 MB", "planned 640 MB", "activations",
                 "not measured", "evaluate before"):  # fmt: skip
        assert text in page.text, text


def test_how_it_was_measured_is_said_where_it_can_not_be_compared(tmp_path: Path) -> None:
    folder = write_measured(tmp_path / "run")
    found = json.loads((folder / "measured.json").read_text())
    found |= {"method": "largest resident set", "finished": True, "has": ["open", "tune"]}
    (folder / "measured.json").write_text(json.dumps(found))
    facts = dict(phase_facts(gather(folder)))
    assert list(facts) == ["open", "tune", "how"] and facts["open"] == "not measured"
    assert "%" not in facts["tune"].split(",")[0] and "largest resident set" in facts["how"]
    assert "largest resident set" in page_of(folder).text


def test_an_older_run_has_its_peaks_without_parts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=12)
    evidence = gather(folder)
    assert [name for name, *_ in compared_phases(evidence)] == ["tune", "evaluate"]
    assert compared_phases(evidence)[1][1:] == ({"all": 420e6}, {"all": 410e6})
    assert phase_facts(evidence) == exact_facts(evidence) == []
    assert "Counted to the byte" not in page_of(folder).text


def test_names_of_parts_are_text(tmp_path: Path) -> None:
    folder = write_measured(tmp_path / "run", **{EVIL: 5_000_000})
    plan = json.loads((folder / "plan.json").read_text())
    plan["phases"]["tune"]["parts"][EVIL] = 3_000_000
    (folder / "plan.json").write_text(json.dumps(plan))
    page = page_of(folder)
    assert "script" not in page.tags and EVIL in page.text
