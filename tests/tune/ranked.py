"""`halfbyte` in several processes as torchrun starts them, for tests: each launch forks its ranks from one process that
has imported everything and computed nothing, so that a dozen launches cost one import.

    python -m tests.tune.ranked '[{"ranks": 2, "arguments": ["tune", "run.yaml"], "log": "log"}]'

prints the exit codes of each launch as JSON. A launch may hold a `fault`: what befalls rank `rank` before its
micro-batch number `at`: "error", "kill" (SIGKILL) or "stop" (SIGTERM); "unwritten": the rank's checkpoints can't be
written. What the ranks say goes to LOG, and LOG.RANK.json lists the items that they trained on.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

STORE = timedelta(seconds=30)


def launch(what: dict[str, Any]) -> list[int]:
    """The exit codes of the ranks, or minus the signals that ended them."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, timeout=STORE)  # as torchrun's agent does
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
                 "WORLD_SIZE": str(what["ranks"]), "LOCAL_WORLD_SIZE": str(what["ranks"])}  # fmt: skip
    ranks = range(what["ranks"])
    children = [_fork(what, rank, variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in ranks]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _fork(what: dict[str, Any], rank: int, variables: dict[str, str]) -> int:
    if child := os.fork():
        return child
    code = 99
    try:
        for target in (1, 2):
            os.dup2(os.open(what["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), target)
        os.environ.update(variables)
        from halfbyte import cli

        seen = _watch(what.get("fault") or {}, rank)
        try:
            code = cli.main(what["arguments"])
        except SystemExit as end:
            code = int(str(end.code))
        Path(f"{what['log']}.{rank}.json").write_text(json.dumps(seen))
        sys.stdout.flush()
        atexit._run_exitfuncs()
    finally:
        os._exit(code)


def _watch(fault: dict[str, Any], rank: int) -> list[list[int]]:
    """Bring the fault about; the tokens of every item that is trained on, once it is."""
    import torch

    from halfbyte.tune import loop
    from halfbyte.tune.state import State

    seen: list[list[int]] = []
    batch, kind = loop.Plan.batch, fault.get("kind") if fault.get("rank") == rank else None

    batches = 0

    def watched(plan: Any, items: Any) -> Any:
        nonlocal batches
        if torch.is_grad_enabled():
            if batches + 1 == fault.get("at"):
                if kind == "error":
                    raise OSError("rank 1 has a fault of its own")
                if kind in ("kill", "stop"):
                    os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGTERM)
            seen.extend(item.ids for item in items)
            batches += 1
        return batch(plan, items)

    loop.Plan.batch = watched  # type: ignore[method-assign]
    if kind == "unwritten":

        def refuse(*_: Any) -> None:
            raise OSError(28, "No space left on device", "checkpoints")

        State.save = refuse  # type: ignore[assignment,method-assign]
    return seen


def main() -> None:
    for name in ("transformers.models.llama.modeling_llama", "halfbyte.experiment", "halfbyte.tune.run"):
        importlib.import_module(name)
    page = importlib.import_module("halfbyte.report.page")
    page.report = str  # type: ignore[attr-defined]  its pictures take seconds
    gc.freeze()  # a run collects garbage at every phase
    print(json.dumps([launch(what) for what in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
