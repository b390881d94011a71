"""The command line: runs a verb, and ends with its exit code and one clear message, whatever went wrong.

`arguments.py` declares the verbs and their options; `verbs.py` has what each of them calls.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from halfbyte.arguments import make_parser
from halfbyte.errors import HalfbyteError, exit_code_of, printable
from halfbyte.memory import ran_out
from halfbyte.tune.stop import numbers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0 done, 1 failed, 2 wrong options, 3 does not fit, 4 a record is contradicted
    (`verify`), 130 stopped by Ctrl-C, SIGTERM or SIGHUP."""
    options = argparse.Namespace(debug=False)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "off")  # no warnings at forks; Encoder knows this word
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for each other spin for milliseconds by default. On a machine that does something else, too,
        # that time is missing to the thread that they wait for. Read when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        with _signals_as_ctrl_c():  # first of all: a signal that comes before it ends the process without a word
            parser = make_parser()
            options = parser.parse_args(arguments, options)
            if not hasattr(options, "handler"):
                parser.print_help()
                return 2
            code: int = options.handler(options)
            sys.stdout.flush()
            return code
    except HalfbyteError as error:
        if options.debug:
            traceback.print_exc()
        _say(f"error: {error}")
        return exit_code_of(error)
    except KeyboardInterrupt as error:
        _say(str(error) or "stopped; what was finished is kept, and nothing that is half written counts")
        return exit_code_of(error)
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_code_of(error)
    except Exception as error:
        if options.debug:
            raise
        _say(f"error: {printable(_in_words(error))}")
        return exit_code_of(error)


def _say(text: str) -> None:
    """On standard error, which may be gone, too."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind a verb as Ctrl-C does, so that it can clear up behind it."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, stop) for number in numbers() if number != signal.SIGINT}
    except ValueError:  # not in the main thread: whoever runs it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_words(error: Exception) -> str:
    """What to say of an error that no verb has made words of."""
    if ran_out(error):
        return "memory ran out\n  do: see `halfbyte plan`, close other programs, or take a smaller model"
    if isinstance(error, OSError):
        full = error.errno == errno.ENOSPC
        do = "free some disk space" if full else "run again with --debug for details"
        return f"{error.strerror or error}\n  where: {error.filename or 'unknown'}\n  do: {do}"
    return f"{type(error).__name__}: {error}\n  do: a fault of halfbyte; run again with --debug and report it"
