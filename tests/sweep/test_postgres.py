"""Two processes that share a study in a real PostgreSQL server, as two machines would: each in a folder of its own."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halfbyte.sweep.secret import shown_url
from tests.sweep.test_sweep import found_in, sweep_files
from tests.tiny import tiny_checkpoint

PASSWORD = "not/for@anyone"


def _tool(name: str) -> str | None:
    """A program of PostgreSQL's server: Debian puts them outside the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(places[-1]) if places else shutil.which(name)


def _other_user() -> dict[str, Any]:
    """The server refuses to run as root: then it runs as the user that Debian made for it, else as nobody."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an empty database on loopback; its server and its data are gone after the tests."""
    initdb, pg_ctl = _tool("initdb"), _tool("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    place, who = Path(tempfile.mkdtemp(prefix="halfbyte-pg-")), _other_user()
    try:
        secret = place / "password"
        secret.write_text(PASSWORD + "\n")
        for path in (place, secret):
            if who:
                os.chown(path, who["user"], who["group"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def run(*command: object) -> None:
            done = subprocess.run(list(map(str, command)), cwd=place, capture_output=True, text=True, timeout=60, **who)
            log = place / "log"
            assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")

        run(initdb, "-D", place / "data", "-U", "half", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync",
            "--locale=C", "--encoding=UTF8")  # fmt: skip
        options = f"-F -h 127.0.0.1 -p {port} -c unix_socket_directories=''"
        # pg_ctl's own output must not stay open in the server, or its reader would wait for ever: it goes to the log
        run(pg_ctl, "-D", place / "data", "-l", place / "log", "-o", options, "-w", "start")
        try:
            yield f"postgresql://half:{PASSWORD.replace('/', '%2F').replace('@', '%40')}@127.0.0.1:{port}/postgres"
        finally:
            run(pg_ctl, "-D", place / "data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_two_processes_share_one_study(server: str, folder: Path) -> None:
    """One is given the password in the URL, the other in PGPASSWORD."""
    command = sweep_files(folder, tiny_checkpoint("llama", folder / "model"))
    line = [sys.executable, "-m", "halfbyte", *command, "--trials", "4"]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # they share the cores
    without = server.replace(f":{PASSWORD.replace('/', '%2F').replace('@', '%40')}@", "@")
    urls = {"one": (server, alone), "two": (without, alone | {"PGPASSWORD": PASSWORD})}
    processes = {
        name: subprocess.Popen([*line, "--storage", url, "--out", str(folder / name)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment)
        for name, (url, environment) in urls.items()
    }  # fmt: skip
    said = {name: process.communicate(timeout=180) for name, process in processes.items()}
    assert [process.returncode for process in processes.values()] == [0, 0], said
    found = {name: found_in(folder / name) for name in processes}

    for name, one in found.items():
        assert [trial["number"] for trial in one["trials"]] == [0, 1, 2, 3] and one["finished"]
        assert one["best"]["number"] == found["one"]["best"]["number"]
        assert one["storage"] == shown_url(urls[name][0])
    texts = [*(text for pair in said.values() for text in pair),
             *(file.read_text(errors="replace") for file in folder.rglob("*")
               if file.suffix in (".txt", ".json", ".html", ".yaml", ".jsonl"))]  # fmt: skip
    assert len(texts) > 20 and not [text for text in texts if PASSWORD in text or "for%40anyone" in text]
    assert "***" in found["one"]["storage"] and "***" not in found["two"]["storage"]
    runs = {name: {path.name for path in (folder / name / "trials").iterdir()} for name in processes}
    assert runs["one"] | runs["two"] == {"0000", "0001", "0002", "0003"} and not runs["one"] & runs["two"]
    assert runs["one"] and runs["two"]  # both had their share
    values = [trial["values"] for trial in found["one"]["trials"]]
    assert len({json.dumps(one) for one in values}) == 4  # and no two tried the same

    scored = list(folder.glob("*/trials/*/evaluations/tuned/result.json"))  # by the one that holds the winner's run
    assert [path.parents[2].name for path in scored] == [f"{found['one']['best']['number']:04}"]
    holder = scored[0].parents[4].name
    other = ({"one", "two"} - {holder}).pop()
    assert found[holder]["test"]["scored"] == [found["one"]["best"]["number"]]
    assert found[other]["test"] is None and "the sweep there scores it" in " ".join(found[other]["notes"])
