"""RUN.yaml."""

from __future__ import annotations

from fuzz.check import folder
from halfbyte.config import load_run

FILE = folder() / "run.yaml"
SEEDS = [text.encode() for text in (
    "model: a/b\ndata: {train: x.jsonl, validation: 0.1, template: {prompt: '{a}', completion: '{b}'}}\n",
    "model: m\nadapter: {rank: 8, alpha: 16, targets: [q_proj, v_proj]}\ntune: {epochs: 1, learning_rate: 2e-4}\n",
    "model: m\nmemory: 8GB\nseed: 1\nout: runs/x\nweights: int8\ndevice: cpu\n",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmodel: *c\n", "model: !!python/object/apply:os.system [ls]\n",
    "model: [*a]\n", "&a [*a]", "? [a]\n: b\n", "a: 1\na: 2\n", "model: 2001-99-99\n", "seed: 0x_\n",
    "seed: " + "9" * 5000,
    "<<: {model: m}\n", "seed: " + "9" * 400 + "\n", "model: \"\\ud800\"\n", "\0", "[" * 2000, "model: m\nseed: .inf\n",
    "- a\n", "model: !!binary eA==\n", "1: 2\nnull: 3\n", "model: m\ntune: 3\nadapter: null\n", "seed: 1:2:3\n",
    "model: m\nseed: " + "1:" * 180 + "1.5\n", "model: " + "1:" * 95_000 + "1\n", "model: !!map [a]\n",
    "model: !!set {a, b}\n", "model: m\nadapter: {alpha: 1e999}\n",
)]  # fmt: skip


def run(data: bytes) -> None:
    FILE.write_bytes(data)
    assert load_run(FILE).model
