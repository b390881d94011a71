"""Several models in one table, and where each figure comes from."""

import io
import json

import pytest
from rich.console import Console

from halfbyte.cli import main
from halfbyte.plan import catalogue
from halfbyte.plan.sources import render, sources


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda entry: entry.short_name)
def test_every_fact_has_a_source_or_a_reason(entry):
    found = sources(entry.name)
    for name, fact in found["facts"].items():
        assert fact.get("from") if fact["value"] is not None else fact["unknown"].startswith("no source states it"), (
            name
        )
        assert fact["value"] == entry.fields[name]
    assert found["conflicts"] == (entry.fields["conflicts"] or {})
    if entry.parameters is None:
        assert found["figures"]["parameters"].startswith("unknown, because")
    assert not entry.fields["notes"] or entry.fields["notes"] in found["notes"]


def test_sources_are_printed(capsys):
    assert main(["plan", "falcon3-1b-base", "--sources"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tie_word_embeddings" in said and "unknown, because no source states it" in said
    assert "tiiuae/Falcon3-1B-Base from the packaged catalogue" in said
    torn = next(entry for entry in catalogue.entries() if entry.fields["conflicts"])
    main(["plan", torn.name, "--sources", "--json"])
    assert json.loads(capsys.readouterr().out)["conflicts"] == torn.fields["conflicts"]


def test_a_mixture_has_its_own_facts():
    out = io.StringIO()
    render([sources("gemma-4-26b-a4b")], Console(file=out, width=200))
    assert "25 x sliding_attention, 5 x full_attention" in out.getvalue()
    assert "unknown, because the activations of model_type 'gemma4_text' are not modelled" in out.getvalue()
    facts = sources("deepseek-v2-lite")["facts"]
    assert (facts["n_routed_experts"]["value"], facts["kv_lora_rank"]["value"]) == (64, 512)


def test_a_folder_has_sources_too(llama, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama))
    found = sources(str(tmp_path))
    assert found["facts"]["hidden_size"] == {"value": 64, "from": "config.json"}
    assert "to the byte" in found["figures"]["weights, constants"]


def test_models_are_compared_in_the_order_that_was_asked_for(capsys):
    names = ["qwen3-0.6b", "llama-3.1-8b", "granite-3.3-8b-base"]
    assert main(["plan", *names, "--memory", "4GB", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert [plan["model"].rpartition("/")[2].lower() for plan in plans] == names
    assert main(["plan", names[1], "--memory", "4GB", "--json"]) in (0, 3)
    alone = json.loads(capsys.readouterr().out)
    assert alone | {"device": None} == plans[1] | {"device": None}  # what of it is free changes all the time
    assert main(["plan", *names, "--memory", "4GB"]) == 0
    said = capsys.readouterr().out
    assert "8,030,261,248" in said and "unknown, because" in " ".join(said.split())


def test_of_several_one_that_fits_is_enough(capsys):
    assert main(["plan", "llama-3.1-8b", "llama-3.1-70b", "--memory", "1GB"]) == 3
    assert main(["plan", "llama-3.1-70b", "smollm2-135m", "--memory", "3GB"]) == 0


def test_a_narrow_table_keeps_its_numbers(monkeypatch):
    from halfbyte.plan.compare import render
    from halfbyte.plan.ladder import plan_model

    out = io.StringIO()
    render([plan_model(name, memory=10**10) for name in ("llama-3.1-8b", "phi-4")], Console(file=out, width=70))
    assert "8,030,261,248" in out.getvalue()
