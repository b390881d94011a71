"""The tasks of EleutherAI's lm-evaluation-harness by name, ready to be asked; a group gives all of its tasks.

The harness' seeds are kept (0 for `random`, 1234 for numpy, torch and the examples), so that shuffled options and drawn
examples are those that others publish scores of; the process's own random state is put back afterwards.
"""

from __future__ import annotations

import difflib
import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from halfbyte.errors import ConfigError, DataError, HalfbyteError, MissingDependency

SEED = 1234  # of the examples before a prompt
BROKEN = (LookupError, TypeError, ValueError, AttributeError, AssertionError, ImportError, SyntaxError, TemplateError)
_NEAREST = 5


def load_harness_tasks(named: str, path: Path | None = None, shots: int | None = None) -> dict[str, Any]:
    """{name: task} for `named`, a list with commas; `path`: a folder with tasks of one's own, in the harness's YAML.

    `shots`: examples before each prompt instead of the task's own number. Raises MissingDependency without the harness;
    ConfigError for an unknown name, a missing folder and a task that can't be run here; DataError for one whose data
    set is not here or that is broken.
    """
    names = [name.strip() for name in named.split(",") if name.strip()]
    if not names:
        raise ConfigError(
            "no task of the harness is named", where="--harness", do="name some, e.g. --harness gsm8k,arc_easy"
        )
    if path is not None and not path.is_dir():
        raise ConfigError("there is no such folder of harness tasks", where=path, do="check --harness-path")
    _check_installed()
    found: dict[str, Any] = {}
    with quiet(), seeded():
        manager = _manager(names, path)
        for name in names:
            if name not in manager.task_index:
                raise _unknown(name, manager.all_tasks, path)
            found |= _loaded(manager, name)
        for name, task in found.items():
            _check_runnable(name, task)
            own = task.get_config("num_fewshot")
            if own == 0 and shots:  # it means it: its prompt holds its examples already
                raise ConfigError("a harness task has no place for examples", where=name, found=f"--shots {shots}",
                                  do="leave --shots out")  # fmt: skip
            task.set_config(key="num_fewshot", value=(own or 0) if shots is None else shots)
            task.set_fewshot_seed(seed=SEED)
    return found


def _unknown(name: str, known: Iterable[str], path: Path | None) -> ConfigError:
    """For a name that no task has: the nearest few, and how to see all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=_NEAREST)
    close += [task for task in known if name.lower() in task.lower() and task not in close][: _NEAREST - len(close)]
    found = f"nearest: {', '.join(close)}" if close else "none is like it"
    there = f", and those in {path}" if path else ""
    return ConfigError("the harness has no such task", where=f"--harness {name}", found=found,
                       do=f"list all: lm_eval ls tasks{there}")  # fmt: skip


def _check_installed() -> None:
    try:
        import lm_eval.evaluator
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise MissingDependency("the benchmarks of lm-evaluation-harness need another library", found=str(error),
                                do="pip install 'halfbyte[harness]'") from None  # fmt: skip


def _manager(names: list[str], path: Path | None) -> Any:
    """The harness's index of tasks. Reading that of all its own takes seconds, so it is left out where it can be."""
    from lm_eval.tasks import TaskManager

    if path is not None:
        own = TaskManager(include_path=str(path), include_defaults=False)
        if set(names) <= set(own.all_subtasks):
            return own
    return TaskManager(include_path=str(path) if path else None)


def _loaded(manager: Any, name: str) -> dict[str, Any]:
    try:
        return dict(manager.load([name])["tasks"])
    except HalfbyteError:
        raise
    except (OSError, RuntimeError) as error:  # the latter where a data set is a script, which datasets runs no more
        raise DataError("the data set of a harness task can't be had", where=name, found=_first_line(error),
                        do="load it once with a network, or name a task of your own with --harness-path"
                        ) from error  # fmt: skip
    except BROKEN as error:
        raise broken(name, error) from error


def broken(name: str, error: Exception) -> DataError:
    """What to raise when the code or the YAML of a task fails."""
    return DataError("a harness task is broken", where=name, found=f"{type(error).__name__}: {_first_line(error)}",
                     do="check the task's YAML and its data; the fault may lie in the task itself")  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _check_runnable(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError("a harness task runs code that the model writes, which halfbyte does not", where=name,
                          do="take another task")  # fmt: skip
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError("a harness task needs a model that sees or hears", where=name, do="take another task")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's log; errors stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def seeded() -> Iterator[None]:
    """With the harness's seeds; afterwards everything random is as it was."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
