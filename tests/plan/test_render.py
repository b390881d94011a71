"""The picture in the terminal: to scale, and plain where there is no terminal."""

import io

from rich.console import Console

from halfbyte.plan.ladder import plan_model
from halfbyte.plan.render import bar, render_plan

GB = 10**9


def _shown(name, terminal=False, width=110, **settings):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system="standard" if terminal else None)
    render_plan(plan_model(name, **{"memory": 24 * GB, **settings}), console)
    return out.getvalue()


def test_a_bar_is_to_scale_and_never_empty():
    assert bar(100, 100, 10) == "█" * 10
    assert bar(50, 100, 10) == "█" * 5
    assert bar(1, 10**9, 10) == "▏"
    assert bar(0, 100, 10) == bar(5, 0, 10) == bar(5, 5, 0) == ""


def test_off_a_terminal_it_is_plain_text_with_the_exact_bytes():
    text = _shown("llama-3.1-8b", rank=32, targets="attention")
    assert "\x1b" not in text and "█" not in text
    for number in ("8,030,261,248", "32,121,044,992", "9,081,200,640", "5,591,539,712", "110,755,840", "109,051,904"):
        assert number in text
    assert "32.1 GB" in text and "5.59 GB" in text and "\nfits\n" in text


def test_the_phases_are_drawn_as_stacked_bars():
    plain, drawn = _shown("llama-3.1-8b", width=80), _shown("llama-3.1-8b", terminal=True, width=80)
    assert any(line.startswith("tune      rrr") and "aaa" in line for line in plain.splitlines())
    assert "r runtime  A adapter" in plain and "aaa" not in drawn and "█" in drawn


def test_on_a_terminal_the_ladder_is_drawn():
    lines = _shown("llama-3.1-8b", terminal=True, rank=32, targets="attention").splitlines()
    drawn = {word: next(line.count("█") for line in lines if word in line) for word in ("fp32", "bf16", "nf4 ")}
    assert drawn["fp32"] == 2 * drawn["bf16"] == 40 and drawn["nf4 "] == 7
    assert any("adapter" in line and "▏" in line for line in lines)


def test_it_fits_a_narrow_terminal_and_keeps_the_numbers_whole():
    text = _shown("llama-3.1-70b", terminal=False, width=60)
    assert "282,214,825,984" in text


def test_what_does_not_fit_and_what_is_unknown_are_said():
    assert "\ndoes not fit\n" in _shown("llama-3.1-8b", memory=10**9)
    text = _shown("granite-3.3-8b-base")
    assert "unknown parameters" in text and "because none of the catalogue's sources" in text
    assert "whether it fits is unknown" in text


def test_brackets_in_a_path_are_no_markup(llama, tmp_path):
    from tests.plan.conftest import write_model

    folder = write_model(tmp_path / "[red]x", llama, {"model.layers.0.mlp.up_proj.weight": ("BF16", (100, 64))})
    assert "[red]x" in _shown(str(folder))
