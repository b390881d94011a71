"""Where a study is kept, and how it is asked: Optuna's storage in SQLite or PostgreSQL, its TPE and its median pruner.

What a trial is asked to try depends on the sweep's seed, the trial's number and the trials that have ended, and on
nothing else: not on which process asks, nor on how often the sweep was interrupted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from halfbyte.errors import ConfigError, HalfbyteError, MissingDependency

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study as OptunaStudy

RANDOM = 10  # trials that are drawn at random before TPE has enough to go by (Optuna's default)
JUDGED = 5  # trials that must have ended by themselves before any is pruned (Optuna's default)
TENTHS = 3  # of its run that a trial may make before it can be pruned


class StorageError(HalfbyteError):
    """The database of a study can't be reached, or does not do what is asked."""


def sqlite_url(file: Path) -> str:
    import_optuna()
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def _driver_url(url: str) -> str:
    """`url` with the driver that halfbyte installs. Raises ConfigError for what is no such URL."""
    from halfbyte.sweep.secret import EXAMPLE, parsed

    made = parsed(url)
    if made.drivername in ("postgresql", "postgres"):
        made = made.set(drivername="postgresql+psycopg")
    if made.drivername == "postgresql+psycopg":
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise MissingDependency("a study in PostgreSQL needs psycopg", where="--storage",
                                    do="pip install 'halfbyte[postgres]'") from None  # fmt: skip
    elif made.drivername != "sqlite":
        raise ConfigError("a study is kept in PostgreSQL or SQLite", where="--storage", found=made.drivername,
                          do=EXAMPLE)  # fmt: skip
    return made.render_as_string(hide_password=False)


def import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingDependency("a sweep needs Optuna", do="pip install 'halfbyte[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(url: str, name: str, seed: int, own: Mapping[str, Any] | None) -> OptunaStudy:
    """The study `name` in the database, made if it is not there. `own`: what trial 0 tries, None: as the others."""
    optuna, sampler = import_optuna(), _sampler(seed, own)
    address = _driver_url(url)
    for attempt in range(4):
        try:
            with reaching(url):
                storage = optuna.storages.RDBStorage(address, engine_kwargs={"pool_pre_ping": True})
                pruner = optuna.pruners.MedianPruner(n_startup_trials=JUDGED, n_warmup_steps=TENTHS)
                return cast("OptunaStudy", optuna.create_study(
                    study_name=name, storage=storage, sampler=sampler, pruner=pruner, load_if_exists=True
                ))  # fmt: skip
        except StorageError:
            if attempt == 3:
                raise
            time.sleep(0.5 * 2**attempt)  # another process makes the tables just now, or the server starts
    raise AssertionError


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """What goes wrong with the database at `url` becomes a StorageError, which shows no password."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    from halfbyte.sweep.secret import scrubbed, shown_url

    faults: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError, *_driver_errors())
    try:
        yield
    except faults as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        found = scrubbed(str(getattr(cause, "orig", None) or cause).strip(), url).splitlines()
        raise StorageError(
            "the study's database does not answer as it should",
            where=shown_url(url),
            found=found[0] if found else type(cause).__name__,
            do="check --storage, PGPASSWORD, and that the server runs; then the same command goes on",
        ) from None


def _driver_errors() -> tuple[type[Exception], ...]:
    """What psycopg raises by itself, past SQLAlchemy."""
    try:
        from psycopg import Error
    except ImportError:
        return ()
    return (Error,)


def _sampler(seed: int, own: Mapping[str, Any] | None) -> BaseSampler:
    """Optuna's TPE (Watanabe 2023, arXiv:2304.11127), seeded anew for each trial by the trial's number."""
    optuna = import_optuna()

    class Seeded(optuna.samplers.BaseSampler):  # type: ignore[misc, name-defined]
        """Trial 0 tries `own`, where there is that."""

        def __init__(self) -> None:
            self.inner = self._made(0)

        def _made(self, number: int) -> Any:
            return optuna.samplers.TPESampler(seed=(seed * 1_000_003 + number) % 2**32, n_startup_trials=RANDOM,
                                              constant_liar=True)  # fmt: skip

        def before_trial(self, study: Any, trial: Any) -> None:
            self.inner = self._made(trial.number)
            self.inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return {} if self._is_own(trial) else self.inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return {} if self._is_own(trial) else self.inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            if own is not None and self._is_own(trial):
                return own[name]
            return self.inner.sample_independent(study, trial, name, distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self.inner.after_trial(study, trial, state, values)

        def _is_own(self, trial: Any) -> bool:
            return own is not None and trial.number == 0

    return cast("BaseSampler", Seeded())
