"""The password of a study's database shows nowhere, however it was given and whatever goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.cli import main
from halfbyte.errors import ConfigError, HalfbyteError
from halfbyte.sweep import storage
from halfbyte.sweep.secret import scrubbed, shown_url
from halfbyte.sweep.storage import StorageError, reaching
from tests.sweep.test_worker import study_in

SECRET = "se/cr@t ü%"
ENCODED = "se%2Fcr%40t%20%C3%BC%25"
PARTS = ("cr@t", "cr%40t", "se/cr", "se%2Fcr", "se%2fcr")
AWAY = "127.0.0.1:1/d?connect_timeout=1"


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("nonsense", ConfigError, "no database"),
        (f"mysql://u:{ENCODED}@h/d", ConfigError, "PostgreSQL or SQLite"),
        (f"postgresql://u:{ENCODED}@{AWAY}", StorageError, "u:***@127.0.0.1"),
        (f"postgresql://127.0.0.1:1/d?user=u&password={ENCODED}&connect_timeout=1", StorageError, "127.0.0.1"),
        (f"postgresql://u:{ENCODED}@{AWAY}&sslpassword={ENCODED}", StorageError, "u:***@127.0.0.1"),
        (f"postgresql://{AWAY}&pasword={ENCODED}", StorageError, "invalid connection option"),
        (f"postgresql://u:{ENCODED}@h:port/d", ConfigError, "a port that is no number"),
        (f"postgresql://u:{SECRET}@h/d", ConfigError, "more than one @"),
        ("postgresql://u:cr@t/se@h/d", ConfigError, "more than one @"),
        (f"postgresql://u%3A{ENCODED}@h/d", ConfigError, "a user with a colon"),
        (f"postgresql//u:{SECRET}@h/d", ConfigError, "no database"),
    ],
)
def test_a_wrong_database_is_told_without_its_password(
    folder: Path, url: str, error: type[HalfbyteError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with pytest.raises(error) as caught:
        study_in(folder, url=url)
    assert said in str(caught.value) and not [part for part in PARTS if part in str(caught.value)]
    if error is StorageError:
        assert not [part for part in PARTS if part in shown_url(url)]


def test_what_a_server_or_a_driver_quotes_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    url = f"postgresql://u:{ENCODED}@h/d"
    quoted = f"could not connect with password={SECRET!r} ({ENCODED}, {ENCODED.lower()})"
    assert not [part for part in PARTS if part in scrubbed(quoted, url)]
    with pytest.raises(StorageError) as caught, reaching(url):
        raise OperationalError("SELECT", {}, Exception(f'FATAL: password "{SECRET}" is wrong'))
    assert 'password "***" is wrong' in str(caught.value)
    monkeypatch.setenv("PGPASSWORD", "from the environment")
    assert scrubbed("PGPASSWORD=from the environment", "postgresql://u@h/d") == "PGPASSWORD=***"


def test_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in what is printed, nor in any file that the sweep left by then."""
    from tests.sweep.test_sweep import sweep_files
    from tests.tiny import tiny_checkpoint

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    command = sweep_files(folder, tiny_checkpoint("llama", folder / "tiny"))
    assert main([*command, "--trials", "1", "--storage", f"postgresql://u:{ENCODED}@{AWAY}"]) == 1
    said = "".join(capsys.readouterr())
    assert "error: the study's database does not answer" in said and "PGPASSWORD" in said and "Traceback" not in said
    left = [file.read_text() for file in (folder / "out-sweep").rglob("*") if file.is_file()]
    assert left and not [part for part in PARTS for text in (said, *left) if part in text]
