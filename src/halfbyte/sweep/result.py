"""What a sweep found: `sweep.json`, whose keys docs/files.md lists, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.config import RunConfig
from halfbyte.environment import environment
from halfbyte.evaluate.results import write_json
from halfbyte.sweep.study import Row, Study

PER_KNOB = 10  # complete trials a knob, under which importances mean little
LEAST = 8  # complete trials, under which there are none
BEST = 5  # the best so many, or the best tenth, are set against all


@dataclass
class Found:
    """All that is written and shown."""

    study: Study
    config: RunConfig
    trials: int  # that were asked for
    own: bool  # trial 0 is the run as it stands
    rows: list[Row] = field(default_factory=list)
    test: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def best(self) -> Row | None:
        return winner(self.rows)

    def to_json(self) -> dict[str, Any]:
        best = self.best
        shares, note = importances(self.study, self.rows)
        return {
            "schema": 1,
            "study": self.study.name,
            "storage": self.study.shown,
            "model": self.config.model,
            "seed": self.config.seed,
            "trials_asked": self.trials,
            "finished": len(self.rows) >= self.trials and all(row.ended for row in self.rows),
            "space": self.study.space.to_json(),
            "own": self.own,
            "trials": [_trial(row) for row in self.rows],
            "best": None if best is None else _trial(best),
            "importances": shares,
            "importances_note": note,
            "test": self.test,
            "notes": self.notes,
            **environment(),
        }

    def write(self, file: Path, rows: list[Row]) -> dict[str, Any]:
        """Take over the trials as they stand now, and put all into `file`, whole or not at all. Raises HalfbyteError
        when the disk refuses."""
        self.rows = rows
        made = self.to_json()
        write_json(file, made)
        return made


def winner(rows: list[Row]) -> Row | None:
    """The complete trial with the lowest validation loss, of equals the first."""
    complete = [row for row in rows if row.state == "complete" and row.loss is not None]
    return min(complete, key=lambda row: (row.loss, row.number), default=None)


def importances(study: Study, rows: list[Row]) -> tuple[dict[str, float] | None, str]:
    """(share a knob, how far to trust it)."""
    complete = sum(row.state == "complete" for row in rows)
    knobs = len(study.space.knobs)
    if complete < LEAST:
        return None, f"What mattered can't be told from {complete} complete trials: {LEAST} are the least."
    best = max(BEST, math.ceil(complete / 10))
    shares = study.importances(best / complete)
    if not any(shares.values()):
        return None, "What mattered can't be told: the best trials lie where the others do."
    text = f"From {complete} complete trials, by where the best {best} of them lie (PED-ANOVA)."
    if complete < PER_KNOB * knobs:
        text += f" With so few trials for {knobs} knob{'s' * (knobs > 1)} these shares mean little."
    return shares, text


def _trial(row: Row) -> dict[str, Any]:
    return {
        "number": row.number,
        "state": row.state,
        "values": row.values,
        "validation_loss": row.loss,
        "curve": {str(tenth): loss for tenth, loss in row.curve.items()},
        "seconds": row.seconds,
        "host": row.host,
        "folder": row.folder,
        "error": row.error,
    }
