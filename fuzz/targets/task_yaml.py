"""TASK.yaml, every kind of task."""

from __future__ import annotations

from fuzz.check import folder
from halfbyte.config import load_task

FILE = folder() / "task.yaml"
SEEDS = [text.encode() for text in (
    "name: t\ndata: x.jsonl\nkind: number\ntolerance: {relative: 0.2}\nfallback: null\n",
    "data: x.csv\nkind: choice\noptions: [yes, 'no', 1, 2.5]\nanswer: generated\n",
    "data: x.csv\nkind: json\nschema: s.json\n", "data: x.csv\nkind: python\nscorer: ../s.py:score\n",
    "data: x.csv\nkind: contains\ncontains: {case: true, words: true}\n", "data: [x]\nsplit: {share: 0.5, salt: 3}\n",
    "name: ../../x\ndata: y.jsonl\n", "data: x\ndecoding: {max_new_tokens: 4, stop: ['\\n', 3, null]}\nshots: 2\n",
    "data: x\nkind: json\ndecoding: 3\n", "data: x\noptions: &a [*a]\n", "data: x\nshots: 1" + "0" * 400 + "\n",
    "data: x\nkind: [a]\n", "data: x\nkind: {a: b}\n", "data: x\ntemplate: {prompt: '{a}', 3: b, c: 4}\n",
    "data: ~x/y\n", "data: x\nshots: " + "1:" * 180 + "1.5\n", "data: x\noptions: [" + "1:" * 95_000 + "1]\n",
    "data: 'a\\0b'\n", "data: \"a\\0b.jsonl\"\n",
)]  # fmt: skip


def run(data: bytes) -> None:
    FILE.write_bytes(data)
    assert load_task(FILE, runs=False).data
