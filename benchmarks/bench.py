"""What the benchmarks of a whole model share: the checkpoints, the peer (loaded once), and the files of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import common, shapes, turns
from benchmarks.common import Row, Table
from benchmarks.turns import Case, Outcome, Worker

ROUNDS = {"tiny": 1, "1b": 3, "8b": 2}
SECONDS = {"tiny": 1.0, "1b": 75.0, "8b": 300.0}  # of one case's turns


@dataclass
class Bench:
    """One run over the models in `folder`: at most `rounds` turns a case, and as many as fit into `seconds`."""

    shape: str
    folder: Path
    rounds: int
    seconds: float
    results: Path = common.RESULTS
    limit: int | None = None  # items that are evaluated, where not all are
    _tables: dict[str, Table] = field(default_factory=dict)
    _peer: Worker | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close_peer(stop=error is not None)

    @property
    def peer(self) -> Worker:
        """The stock stack (`peers.session`) with the model; loading it takes minutes, so it is done once."""
        if self._peer is None or not self._peer.alive:
            common.say("the peer loads its model")
            self._peer = turns.Worker("benchmarks.peers:session", {"folder": str(self.folder)})
        return self._peer

    def close_peer(self, stop: bool = False) -> None:
        if self._peer is not None:
            self._peer.close(stop)
            self._peer = None

    def add(self, name: str, rows: list[Row]) -> None:
        """Append `rows` to the file of the benchmark `name`, which this run begins anew."""
        if name not in self._tables:
            self._tables[name] = Table(self.results / f"{name}-{self.shape}.csv")
        self._tables[name].add(rows)

    def turns(
        self, workers: dict[str, Worker], what: str, case: Case | None = None, **limits: float
    ) -> dict[str, Outcome]:
        """`turns.by_turns` with the run's rounds and seconds, unless `limits` has other ones."""
        rounds = min(self.rounds, int(limits.get("rounds", self.rounds)))
        return turns.by_turns(workers, rounds, limits.get("seconds", self.seconds), case, f"{what}, {self.shape}")


def main(
    doc: str | None, given: Sequence[str] | None, measure: Callable[[Bench], object], **options: dict[str, object]
) -> None:
    """Run one benchmark of a whole model from the command line."""
    folder = {"type": Path, "help": "holds the checkpoints, made there where they are missing; by default a folder for "
                                    "temporary files, removed after"}  # fmt: skip
    shape = {"choices": list(shapes.SHAPES), "default": "1b", "help": "of the model (%(default)s)"}
    found = common.arguments(doc, given, rounds=0, seconds=0.0, shape=shape, folder=folder, **options)
    rounds, seconds = found.rounds or ROUNDS[found.shape], found.seconds or SECONDS[found.shape]
    with shapes.checkpoints(found.shape, found.folder) as place:
        limit = getattr(found, "limit", None)
        with Bench(found.shape, place, rounds, seconds, found.results, limit) as bench:
            measure(bench)
