"""halfbyte: fine-tune an open model in half a byte a weight, on the machine you have, and prove that it got better."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "HalfbyteError": "errors",
    "check_data": "checking",
    "compare_folders": "evaluate.compare",
    "evaluate_task": "evaluate.evaluate",
    "generate": "evaluate.generate",
    "load_model": "model.build",
    "load_run": "config",
    "load_task": "config",
    "open_checkpoint": "checkpoint.source",
    "pack": "checkpoint.pack",
    "plan_model": "plan.ladder",
    "run_training": "tune.run",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first asked for, so that `import halfbyte` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"halfbyte has no public name {name!r}; there are {', '.join(__all__)}")
    return getattr(importlib.import_module(f"halfbyte.{_PUBLIC[name]}"), name)
