"""`python -m tests.bad_inputs`: write the table of bad inputs into docs/reliability.md."""

from __future__ import annotations

from tests.bad_inputs.table import DOCUMENT, with_table

DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
