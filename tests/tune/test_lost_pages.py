"""A mapped file of the model that is cut while a kernel reads it: the system's SIGBUS, for real, in processes of their
own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from halfbyte.cli import main
from halfbyte.kernels import native
from halfbyte.tune.state import last_checkpoint
from tests.tune.test_stop import write_run

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGBUS"),
    pytest.mark.skipif(native.load()[0] is None, reason="the handler is part of the native library"),
]

CUT = """if True:
    import importlib, os, sys
    from pathlib import Path
    from halfbyte import cli

    module, name, call, *command = sys.argv[1:]
    place, calls = importlib.import_module(module), 0
    original = getattr(place, name)

    def cut(*values, **named):
        global calls
        calls += 1
        if calls == int(call):
            (packed,) = Path(os.environ["HALFBYTE_CACHE"]).glob("*-nf4-*/model.safetensors")
            os.truncate(packed, 0)
        return original(*values, **named)

    setattr(place, name, cut)
    sys.exit(cli.main(command))
"""


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data, a task and a run.yaml, and a cache of its own."""
    monkeypatch.setenv("HALFBYTE_CACHE", str(folder / "cache"))
    write_run(folder, data="{train: train.jsonl, validation: 0}", task=None,
              tune="{max_steps: 5, batch: 4, micro_batch: 2, checkpoint_every: 0}")  # fmt: skip
    return folder


def python(home: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=home, capture_output=True, text=True)


def says_what_happened(done: subprocess.CompletedProcess[str], home: Path) -> bool:
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr and "Bus error" not in done.stderr
    message = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert [line.split()[0] for line in message] == ["error:", "where:", "found:", "do:"], message
    if sys.platform == "linux":
        (packed,) = (home / "cache").glob("*-nf4-*/model.safetensors")
        assert message[1] == f"  where: {packed}"
    else:
        assert "likely a file of " in message[1] and "tiny" in message[1]
    assert "shortened" in message[2] and "--resume" in message[3]
    return True


def test_a_run_ends_with_a_message_and_goes_on_from_its_last_checkpoint(home: Path) -> None:
    done = python(home, CUT, "halfbyte.tune.loop", "batch_loss", "6", "tune", "run.yaml")  # in the midst of step 3
    assert says_what_happened(done, home)
    found = last_checkpoint(home / "out" / "checkpoints")
    assert found is not None and found.place.name == "step-000002" and not found.broken
    assert main(["tune", str(home / "run.yaml"), "--resume", "--debug"]) == 0
    left = [json.loads(line)["step"] for line in (home / "out" / "metrics.jsonl").read_text().splitlines()]
    assert left == [1, 2, 3, 4, 5] and load_file(home / "out" / "adapter" / "adapter_model.safetensors")


def test_an_evaluation_ends_with_a_message(home: Path) -> None:
    where = ["halfbyte.evaluate.generate", "_decode_batch", "1"]
    done = python(home, CUT, *where, "evaluate", "tiny", "--task", "task.yaml", "--out", "result")
    assert says_what_happened(done, home) and not (home / "result" / "result.json").exists()


@pytest.mark.parametrize("watched", [False, True])
def test_a_sigbus_that_is_sent_has_its_former_action(home: Path, watched: bool) -> None:
    """The system's, or that of Python's faulthandler, which prints where the process was."""
    code = """if True:
        import os, signal
        from halfbyte.kernels.faults import explain_lost_pages

        assert explain_lost_pages("tiny") and explain_lost_pages("another")
        os.kill(os.getpid(), signal.SIGBUS)
    """
    done = python(home, ("import faulthandler; faulthandler.enable()\n" if watched else "") + code)
    assert done.returncode == -signal.SIGBUS and "mapped" not in done.stderr
    assert ("Fatal Python error: Bus error" in done.stderr) == watched


def test_where_the_system_does_not_name_the_file_the_model_is_named(home: Path) -> None:
    """Provoked by a process that may open no more files; other systems than Linux have no such list at all."""
    code = """if True:
        import mmap, resource
        from pathlib import Path
        from halfbyte.kernels.faults import explain_lost_pages

        assert explain_lost_pages("another") and explain_lost_pages("ti\x1bny")
        with Path("lost").open("w+b") as file:
            file.write(bytes(4 * mmap.PAGESIZE))
            file.flush()
            memory = mmap.mmap(file.fileno(), 0)
            file.truncate(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
            memory[2 * mmap.PAGESIZE]
    """
    done = python(home, code)
    assert done.returncode == 1 and "  where: most likely a file of ti?ny, or of its packed copy\n" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("where:") == 1


def test_whoever_imports_the_package_keeps_the_systems_answer(home: Path) -> None:
    code = """if True:
        import os
        from pathlib import Path
        from halfbyte import load_model

        model = load_model("tiny", weights="nf4", device="cpu")
        (packed,) = Path(os.environ["HALFBYTE_CACHE"]).glob("*-nf4-*/model.safetensors")
        os.truncate(packed, 0)
        sum(parameter.float().sum() for parameter in model.net.state_dict().values())
    """
    done = python(home, code)
    assert done.returncode == -signal.SIGBUS, done.stderr


def test_shared_memory_without_room_is_not_taken_for_a_file(home: Path) -> None:
    code = """if True:
        import mmap, os
        from halfbyte.kernels.faults import explain_lost_pages

        assert explain_lost_pages("tiny")
        file = os.memfd_create("shared")
        os.ftruncate(file, 4 * mmap.PAGESIZE)
        memory = mmap.mmap(file, 0)
        os.ftruncate(file, 0)
        memory[2 * mmap.PAGESIZE]
    """
    done = python(home, code)
    assert done.returncode == -signal.SIGBUS and "error:" not in done.stderr
