"""Licences: the card's metadata, its text, a LICENSE file, the catalogue; else unknown, and where it was looked for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import halfbyte.demo
from halfbyte.select.licence import licence_of


@pytest.mark.parametrize(
    ("files", "value", "source"),
    [
        ({"README.md": "---\nlicense: mit\n---\n# A model\nLicense: other\n"}, "mit", "README.md, metadata"),
        ({"README.md": "---\nlicense: other\nlicense_name: my-own\n---\n"}, "my-own", "README.md, metadata"),
        ({"README.md": "---\nlicense: [mit, cc0-1.0]\n---\n"}, "mit, cc0-1.0", "README.md, metadata"),
        ({"README.md": "---\nlicense: [\n---\n", "LICENSE": "\nMIT License\n\nCopyright"}, "MIT License", "LICENSE"),
        ({"README.md": "---\ndate: 2024-13-45\n---\n", "LICENSE": "MIT License\n"}, "MIT License", "LICENSE"),
        ({"LICENSE.llama2.c.txt": "MIT License\n"}, "MIT License", "LICENSE.llama2.c.txt"),
        ({"README.md": "# A model\n\n## License\n\nApache-2.0\n"}, "Apache-2.0", "README.md"),
    ],
)
def test_of_a_folder(files: dict[str, str], value: str, source: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = licence_of(str(tmp_path), tmp_path)
    assert (found.value, found.source) == (value, source)


def test_of_the_demo_and_of_the_catalogue() -> None:
    base = Path(halfbyte.demo.__file__).parent / "base"
    assert str(licence_of(str(base), base).value).startswith("Apache-2.0")
    found = licence_of("llama-3.1-8b", None)
    assert found.value == "Llama 3.1 Community License" and found.source.startswith("the catalogue")


def test_an_unknown_one_says_where_it_was_looked_for(tmp_path: Path) -> None:
    found = licence_of(str(tmp_path), tmp_path)
    assert found.value is None and "model card" in found.source


@pytest.mark.parametrize("text", ["\n" * 150_000 + "licens", "#" * 150_000, "License" + " " * 150_000])
def test_a_card_takes_no_time(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    started = time.process_time()
    assert licence_of(str(tmp_path), tmp_path).value is None
    assert time.process_time() - started < 1
