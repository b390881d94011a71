"""The packaged catalogue: names, what is unknown, and that nothing was lost on the way in."""

import pytest

from halfbyte.errors import ConfigError
from halfbyte.plan import catalogue


def test_every_model_is_there_once_with_its_sources():
    names = [entry.name for entry in catalogue.entries()]
    assert len(names) == len(set(names)) == 86
    assert len({entry.short_name for entry in catalogue.entries()}) == 86
    for entry in catalogue.entries():
        assert entry.fields["source"], entry.name
        assert {"conflicts", "notes", "licence", "computed_params"} <= set(entry.fields)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "LLAMA-3.1-8B", "meta-llama/Llama-3.1-8B", "meta-llama/llama-3.1-8b"])
def test_a_model_is_found_by_its_id_and_by_its_short_name(name):
    assert catalogue.find(name).name == "meta-llama/Llama-3.1-8B"


def test_short_names_of_base_and_instruct_models_differ():
    assert catalogue.find("qwen3-0.6b").name == "Qwen/Qwen3-0.6B"
    assert catalogue.find("qwen3-0.6b-base").name == "Qwen/Qwen3-0.6B-Base"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("llama-3.1-9b", "llama-3.1-8b"),
        ("gemma-3-1b", "gemma-3-1b-pt or gemma-3-1b-it"),
        ("zzz", "86 models of 18 families"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name, hint):
    with pytest.raises(ConfigError, match="no model") as caught:
        catalogue.find(name)
    assert hint in str(caught.value)


def test_a_null_is_unknown_because():
    entry = catalogue.find("falcon3-1b-base")
    assert entry.fields["tie_word_embeddings"] is None and entry.parameters is None
    assert entry.unknown("tie_word_embeddings").startswith("unknown, because none of the catalogue's sources states")


def test_the_configuration_holds_the_keys_of_a_config_json():
    config = catalogue.find("google/gemma-3-4b-pt").config
    assert config["model_type"] == "gemma3_text" and config["hidden_size"] == 2560
    assert not {"source", "notes", "published_params", "sibling"} & set(config)
