"""A calibration counts where it was made only, and a cost is its terms, bent to the measured points."""

import json

import pytest

from halfbyte.checkpoint.source import cache_folder
from halfbyte.plan import calibration as module
from halfbyte.plan.calibration import FILE, NOT_CALIBRATED, Calibration, Cost, identity, load, store


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))


def _made(**changed):
    return Calibration(
        {**identity(), **changed}, "2026-01-01", 1.0, {"bf16": {"loss": Cost({"call": 2.0})}}, {"read": 1.0}
    )


def test_what_is_stored_is_loaded_again():
    assert load() == (None, NOT_CALIBRATED)
    store(_made())
    found, reason = load()
    assert found == _made() and reason == "calibrated here on 2026-01-01"


@pytest.mark.parametrize("changed", [{"torch": "1.0"}, {"processor": "Z80"}, {"library": "other"}, {"cores": 1000}])
def test_another_machine_or_version_has_none_and_says_what_changed(changed):
    store(_made(**changed))
    found, reason = load()
    assert found is None and reason.startswith(NOT_CALIBRATED) and next(iter(changed)) in reason


def test_forced_kernels_are_another_machine(monkeypatch):
    store(_made())
    monkeypatch.setenv("HALFBYTE_KERNELS", "reference")
    found, reason = load()
    assert found is None and "HALFBYTE_KERNELS None -> reference" in reason


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"schema": 99}), "nonsense"])
def test_a_broken_file_is_none_and_no_error(text):
    cache_folder().mkdir(parents=True)
    (cache_folder() / FILE).write_text(text)
    found, reason = load()
    assert found is None and reason.startswith(NOT_CALIBRATED)


def test_a_cost_is_the_sum_of_its_terms_bent_to_the_points_nearby():
    plain = Cost({"call": 1.0, "byte": 0.5})
    assert plain.seconds({"call": 2, "byte": 8}) == 6
    bent = Cost({"call": 1.0, "byte": 0.5}, [[2.0, 8.0, 1.5]])
    assert bent.seconds({"call": 2, "byte": 8}) == pytest.approx(6 * 1.5, rel=0.05)
    assert bent.seconds({"call": 2, "byte": 8e9}) == pytest.approx(4e9, rel=0.01)
    with pytest.raises(KeyError):
        plain.seconds({"call": 1, "unheard": 3})


def test_the_library_is_part_of_the_identity(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_KERNELS", tmp_path)
    assert identity()["library"] is None
