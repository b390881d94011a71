"""What halfbyte shall reach on a CPU, beside what was measured: one line a goal, each with its own check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.results import LIMIT, OURS, PEER, Result, Results, distance, in_words, times
from halfbyte.options import parse_bytes

MATRIX = "14336x4096"
R32, R16 = "r=32 on q, k, v, o", "r=16 on all linear layers"
DISK_SLACK = 1.1  # packing "at the speed of the disk" is within so much of it
Checks = list[tuple[str, bool | None]]  # what is asked, and whether it is so (None: not measured)


@dataclass(frozen=True)
class Line:
    """A goal and what was measured. `ratio`: how many times faster than the peer."""

    what: str
    ours: Result | None
    peer: Result | None = None
    limit: Result | None = None
    checks: Checks = field(default_factory=list)
    shown: str = ""  # instead of the figure of `ours`

    @property
    def ratio(self) -> float | None:
        comparable = self.ours is not None and self.peer is not None and self.ours.rate == self.peer.rate
        return self.ours.faster_than(self.peer) if comparable and self.ours and self.peer else None

    def cells(self) -> list[str]:
        def word(row: Result | None) -> str:
            return "" if row is None else in_words(row.median, row.figure)

        reached = [kept for _, kept in self.checks]
        verdict = "" if not reached else "not measured" if None in reached else "yes" if all(reached) else "**no**"
        if len(reached) > 1 and verdict == "**no**":
            verdict = "**no**: " + "; ".join(text for text, kept in self.checks if not kept)
        return [self.what, self.shown or word(self.ours), word(self.peer), times(self.ratio), word(self.limit),
                distance(self.ours, self.limit) if self.ours else "", "; ".join(text for text, _ in self.checks),
                verdict]  # fmt: skip


def at_least(ratio: float | None, wanted: float) -> tuple[str, bool | None]:
    return f"{wanted:g} x faster", None if ratio is None else ratio >= wanted


def within(ours: Result | None, limit: Result | None, most: float) -> tuple[str, bool | None]:
    known = ours is not None and limit is not None
    return f"at most {most:g} x the limit", ours.median <= most * limit.median if known and ours and limit else None


def share(ours: Result | None, limit: Result | None, least: float) -> tuple[str, bool | None]:
    text = f"{100 * least:g} % of the limit"
    return text, None if ours is None or limit is None else ours.median >= least * limit.median


def below(text: str, value: float | None, most: float) -> tuple[str, bool | None]:
    return text, None if value is None else value <= most


def total(*rows: Result | None) -> float | None:
    return None if None in rows else sum(row.median for row in rows if row is not None)


def goals(results: Results) -> list[Line]:
    """All goals in their order."""
    parts: tuple[Callable[[Results], Iterator[Line]], ...] = (_kernels, _linear, _small_step, _large_load, _large_step,
                                                             _runs, _decoding)  # fmt: skip
    return [line for part in parts for line in part(results)]


def _kernels(results: Results) -> Iterator[Line]:
    copy = results.get("copy", MATRIX, "bf16 to bf16", LIMIT, "weights_per_second")
    for op, case, theirs, wanted, what in (
        ("quantise", "nf4", "nf4", 50, "quantise to NF4 with double quantisation"),
        ("dequantise", "nf4 to bf16, reused memory", "nf4 to bf16, fresh memory", 7, "dequantise to bf16"),
    ):
        native = results.native(op, case, "weights_per_second")
        line = Line(what, native[-1] if native else None, results.get(op, MATRIX, theirs, PEER, "weights_per_second"))
        yield Line(what, line.ours, line.peer, copy, [at_least(line.ratio, wanted)])


def _linear(results: Results) -> Iterator[Line]:
    for what, plain, low_rank in (("forward", 1.08, 1.15), ("forward and backward", 1.12, 1.2)):
        for case, most in ((f"{what}, without LoRA", plain), (f"{what}, r=16", low_rank)):
            ours, peer, limit = (results.get("linear", MATRIX, case, who, "seconds") for who in (OURS, PEER, LIMIT))
            yield Line(f"QuantLinear {MATRIX}, 512 tokens, {case}", ours, peer, limit, [within(ours, limit, most)])
    ours, peer = (results.get("rows", MATRIX, "1 row", who, "packed_bytes_per_second") for who in (OURS, PEER))
    limit = results.get("rows", MATRIX, "reading alone", LIMIT, "bytes_per_second")
    line = Line(f"packed weights times one row, {MATRIX}, over 1 GB of them", ours, peer, limit)
    faster = None if line.ratio is None else line.ratio > 1
    yield Line(line.what, ours, peer, limit, [share(ours, limit, 0.65), ("faster than the peer", faster)])


def _small_step(results: Results) -> Iterator[Line]:
    def get(recomputed: str, who: str, figure: str = "seconds") -> Result | None:
        return results.get("step", "1b", f"{R32}, {recomputed} layer recomputed", who, figure)

    peer = get("every", PEER)
    for recomputed, wanted, most in (("every", 2.0, 1.3), ("no", 2.6, 1.35)):
        ours, limit = get(recomputed, OURS), get(recomputed, LIMIT)
        against = "" if recomputed == "every" else " (the peer recomputes)"
        what = f"training step, 1B, {R32}, {recomputed} layer recomputed{against}"
        line = Line(what, ours, peer, limit)
        yield Line(what, ours, peer, limit, [at_least(line.ratio, wanted), within(ours, limit, most)])
    yield Line("... beside the peer that recomputes nothing", get("no", OURS), get("no", PEER), get("no", LIMIT))
    name, found = next(((name, row) for name in ("fp32", "bf16") if (row := get("no", f"{name} LoRA"))), ("bf16", None))
    dense = Line(f"... beside {name} LoRA without quantisation", get("no", OURS), found, get("no", LIMIT))
    faster = None if dense.ratio is None else dense.ratio > 1
    yield Line(dense.what, dense.ours, dense.peer, dense.limit, [("faster", faster)])
    yield _memory("peak memory of the step, 1B, every layer recomputed, mapped weights included",
                  get("every", OURS, "peak_bytes"), get("every", OURS, "mapped_bytes"),
                  get("every", PEER, "peak_bytes"), [("at most 2.0 GB", 2.0e9, True)])  # fmt: skip


def _memory(
    what: str, peak: Result | None, mapped: Result | None, peer: Result | None, most: list[tuple[str, float, bool]]
) -> Line:
    """`most`: (text, bytes, whether the mapped ones count)."""
    whole, alone = total(peak, mapped), total(peak)
    checks = [below(text, whole if counted else alone, limit) for text, limit, counted in most]
    shown = ""
    if whole is not None and peak is not None and mapped is not None:
        shown = f"{in_words(whole, 'bytes')} ({in_words(mapped.median, 'bytes')} of it mapped)"
    return Line(what, None, peer, checks=checks, shown=shown)


def _large_load(results: Results) -> Iterator[Line]:
    ours, peak = (results.get("pack", "8b", "", OURS, f"cold_{figure}") for figure in ("seconds", "peak_bytes"))
    peer = results.get("open", "8b", "bf16 checkpoint into NF4", PEER, "seconds")
    read, write = (results.get("pack", "8b", "", LIMIT, f"{what}_seconds") for what in ("read_cold", "write"))
    disk = max((row for row in (read, write) if row is not None), key=lambda row: row.median, default=None)
    line = Line("8B: pack 16 GB of bf16 to a file in NF4, cold cache", ours, peer, disk)
    fast = at_least(line.ratio, 6)[1]
    checks: Checks = [
        ("6 x faster or the disk's speed", fast or (within(ours, disk, DISK_SLACK)[1] if fast is not None else None)),
        below("at most 2 GB", total(peak), 2e9),
    ]
    yield Line(line.what, ours, peer, disk, checks)
    for shape, name in (("8b", "8B"), ("1b", "1B")):
        opened, growth = (results.get("open", shape, "packed checkpoint", OURS, figure)
                          for figure in ("seconds", "growth_bytes"))  # fmt: skip
        load = results.get("open", shape, "bf16 checkpoint into NF4", PEER, "seconds")
        asked: Checks = []
        if shape == "8b":
            asked = [below("under 2 s", total(opened), 2), below("memory grows by at most 200 MB", total(growth), 2e8)]
        yield Line(f"{name}: open the packed checkpoint (the peer: load and quantise)", opened, load, checks=asked)


def _large_step(results: Results) -> Iterator[Line]:
    peer, peer_peak = (results.get("step", "8b", f"{R32}, within 7.5GB", PEER, figure)
                       for figure in ("seconds", "peak_bytes"))  # fmt: skip
    for budget, size, wanted in (("7.5GB", 7.5e9, 1.35), ("12GB", 12e9, 1.8)):

        def get(who: str, figure: str = "seconds", budget: str = budget) -> Result | None:
            return results.get("step", "8b", f"{R32}, within {budget}", who, figure)

        count = get(OURS, "recomputed_layers")
        layers = "" if count is None else f", {count.median:.0f} of 32 layers recomputed"
        what = f"training step, 8B, {R32}, within {budget}{layers}"
        line = Line(what, get(OURS), peer, get(LIMIT))
        checks: Checks = [at_least(line.ratio, wanted), within(line.ours, line.limit, 1.25)]
        yield Line(what, line.ours, peer, line.limit, checks)
        most = [(f"at most {budget.replace('GB', ' GB')}", size, True)]
        if size < 8e9:
            most.append(("1.8 GB beside the mapped weights", 1.8e9, False))
        yield _memory("... its peak memory, mapped weights included", get(OURS, "peak_bytes"),
                      get(OURS, "mapped_bytes"), peer_peak, most)  # fmt: skip


def _runs(results: Results) -> Iterator[Line]:
    """What `halfbyte tune` takes of the memory that it was given, and what it had planned."""
    for row in results.rows:
        if (row.op, row.who, row.figure) != ("tune", OURS, "peak_bytes"):
            continue

        def get(figure: str, row: Result = row) -> Result | None:
            return results.get("tune", row.shape, row.case, OURS, figure)

        budget = row.case.removeprefix("memory: ")
        parts = [f"halfbyte tune, {row.shape.upper()}, {row.case}"]
        count, planned = get("recomputed_layers"), total(get("planned_peak_bytes"), get("planned_mapped_bytes"))
        if count is not None:
            parts.append(f"{count.median:.0f} layers recomputed")
        if planned is not None:
            parts.append(f"planned {in_words(planned, 'bytes')}")
        most = [(f"at most {budget}", float(parse_bytes(budget)), True)]
        yield _memory(", ".join(parts), row, get("mapped_bytes"), None, most)


def _decoding(results: Results) -> Iterator[Line]:
    for shape, name, theirs, wanted in (("1b", "1B", R32, 1.5), ("8b", "8B", "without adapter", 1.3)):
        ours, limit = (results.get("decode", shape, f"1 sequence, {R32}", who, "tokens_per_second")
                       for who in (OURS, LIMIT))  # fmt: skip
        peer = results.get("decode", shape, f"1 sequence, {theirs}", PEER, "tokens_per_second")
        line = Line(f"greedy decoding, {name}, one sequence, with adapter", ours, peer, limit)
        what = line.what + (" (the peer without)" if theirs != R32 else "")
        yield Line(what, ours, peer, limit, [at_least(line.ratio, wanted), share(ours, limit, 0.65)])
    for shape, name in (("8b", "8B"), ("1b", "1B")):
        first, load = (results.get("decode", shape, "1 sequence, without adapter", who, "first_token_seconds")
                       for who in (OURS, PEER))  # fmt: skip
        checks: Checks = [below("under 2 s", total(first), 2)] if shape == "8b" else []
        yield Line(f"time to the first token after opening, {name}, prompt of 32", first, load, checks=checks)
