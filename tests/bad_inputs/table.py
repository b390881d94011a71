"""The table in docs/reliability.md, made of the cases."""

from __future__ import annotations

from pathlib import Path

from tests.bad_inputs import commands, data, files, models, runs
from tests.bad_inputs.case import Case

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- table of bad inputs: python -m tests.bad_inputs -->", "<!-- end of the table of bad inputs -->"
GROUPS: dict[str, list[Case]] = {
    "Models and adapters": models.CASES,
    "Data": data.CASES,
    "RUN.yaml, TASK.yaml, SPACE.yaml": files.CASES,
    "Command lines": commands.CASES,
    "Runs and results": runs.CASES,
}


def number(group: str, at: int) -> str:
    """The name of a case, which is that of its test: a word of its group and its place there."""
    return f"{group.split()[0].removesuffix(',').lower().removesuffix('.yaml')}-{at:02}"


def every_case() -> dict[str, Case]:
    return {number(group, at): case for group, cases in GROUPS.items() for at, case in enumerate(cases, 1)}


def table() -> str:
    """Markdown: a table a group."""
    lines = [f"{len(every_case())} cases. The test of each is `tests/bad_inputs/test_bad_inputs.py`, by its name.", ""]
    for group, cases in GROUPS.items():
        lines += [f"### {group}", "", "| test | input | command | exit | the error says | what is done |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for at, case in enumerate(cases, 1):
            said = f"“{case.said}”" if case.said else ""
            cells = (number(group, at), case.input, f"`{_shown(case.command)}`", str(case.code), said, case.done)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _shown(command: str) -> str:
    for name, word in (("{folder}/", ""), ("{run}", "runs/NAME"), ("{model}", "MODEL"), ("{folder}", ".")):
        command = command.replace(name, word)
    return command


def with_table(document: str) -> str:
    """`document` with what stands between the marks replaced."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"
