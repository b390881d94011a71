"""Print the tables of options that docs/files.md holds, from the one place where options are declared.

python tools/options_table.py run|task
"""

from __future__ import annotations

import sys

from halfbyte.config import RunConfig, TaskConfig
from halfbyte.options import describe


def table(cls: type) -> str:
    """A Markdown table: key, default, meaning with its unit."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, default, unit, text in describe(cls):
        lines.append(f"| `{key}` | `{default}` | {text}{f' ({unit})' if unit else ''} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table({"run": RunConfig, "task": TaskConfig}[sys.argv[1]]))
