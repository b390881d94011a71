"""What can be written on the command line: a verb a stage, and its options with their help.

Nothing heavy is imported here, so that `--help` and `plan` answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from halfbyte import __version__, verbs
from halfbyte.errors import ConfigError
from halfbyte.formats import COMPUTE, WEIGHTS
from halfbyte.verbs import Verb

MakeVerb = Callable[[str, Verb, str, str], argparse.ArgumentParser]  # its name, what it calls, what it does, an example


class _Parser(argparse.ArgumentParser):
    """Its errors are ours, so that a wrong option looks like any other mistake. An option is written out: what begins
    one today may begin two tomorrow."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        hint = _near(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""
        raise ConfigError("the command line can't be read", where=self.prog, found=message,
                          do=f"{hint}see: {self.prog} --help")  # fmt: skip

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As always, but what no option takes is an error of the verb, which knows its options."""
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            made: argparse.ArgumentParser = getattr(options, "parser", self)
            hint = _near(rest[0], re.findall(r"--[\w-]+", made.format_help()))
            raise ConfigError("the command line can't be read", where=made.prog,
                              found=f"unrecognized arguments: {' '.join(rest)}",
                              do=f"{hint}see: {made.prog} --help")  # fmt: skip
        return options


def _near(word: str, known: Sequence[str]) -> str:
    word = word.partition("=")[0]
    if word in known:
        return f"write {word} after the verb; else "
    begun = list(dict.fromkeys(name for name in known if len(word) > 2 and name.startswith(word)))
    found = begun or difflib.get_close_matches(word, known, n=1)
    return f"did you mean {' or '.join(found)}? Else " if found else ""


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="halfbyte",
        description="Fine-tune an open model in half a byte a weight on the machine you have; prove it got better.",
        epilog="Start with: halfbyte demo",
    )
    parser.add_argument("--version", action="version", version=f"halfbyte {__version__}")
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parsers = parser.add_subparsers(title="verbs", metavar="VERB")

    def verb(name: str, handler: Verb, text: str, example: str) -> argparse.ArgumentParser:
        made = parsers.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                          help="show the traceback of an error")  # fmt: skip
        made.set_defaults(handler=handler, parser=made)
        return made

    for declare in (_plan, _check, _pack, _evaluate, _tune, _sweep, _compare, _results, _select, _report, _verify,
                    _generate, _doctor, _demo):  # fmt: skip
        declare(verb)
    return parser


def _plan(verb: MakeVerb) -> None:
    made = verb(
        "plan",
        verbs.plan,
        "what a model weighs, what a run needs, what fits here (exit code 3: does not fit; 0: fits, or unknown)",
        "halfbyte plan llama-3.1-8b --lora-rank 32 --lora-targets attention",
    )
    made.add_argument(
        "model",
        metavar="MODEL|RUN",
        nargs="*",
        help="a local folder, a name from the catalogue, a hub id, or a RUN.yaml; several are compared in one table",
    )
    _revision(made)
    made.add_argument("--lora-rank", type=int, help="rank of the adapter (default: 16)")
    made.add_argument(
        "--lora-targets", help="all, attention, or names and patterns, separated by commas (default: all)"
    )
    _weights(made, "as packed already, else nf4")
    made.add_argument("--sequence", type=int, help="longest item in tokens (default: 512; of a run: of its data)")
    made.add_argument("--batch", type=int, help="items computed at once (default: 1; of a run: as tune chooses)")
    made.add_argument(
        "--memory", help="what the run may take, mapped weights included, e.g. 8GB (default: what is free)"
    )
    made.add_argument("--list", action="store_true", help="the catalogue, or of it what has a given word in its name")
    made.add_argument("--sources", action="store_true", help="where each figure comes from; who disagrees")
    made.add_argument(
        "--device", help="auto, cpu, cuda:N, a card (T4), memory (24GB), several (2x80GB) (default: auto)"
    )
    made.add_argument("--gpus", type=int, metavar="N", help="training on N devices, on paper")
    made.add_argument("--link", help="what each of them sends, e.g. 50GB/s (default: 16GB/s)")
    made.add_argument("--check", action="store_true", help="of a run's folder: what was planned and what was measured")
    _as_json(made)


def _check(verb: MakeVerb) -> None:
    made = verb(
        "check",
        verbs.check,
        "the data of a run, before anything is loaded: what would go wrong silently (exit code 1: errors)",
        "halfbyte check run.yaml",
    )
    _run_file(made)
    _as_json(made)


def _pack(verb: MakeVerb) -> None:
    made = verb(
        "pack",
        verbs.pack,
        "write a checkpoint in another format, in bitsandbytes' layout",
        "halfbyte pack ./Llama-3.1-8B ./Llama-3.1-8B-nf4 --weights nf4",
    )
    made.add_argument("model", metavar="MODEL", help="a local folder or a hub id, in 16 or 32 bits")
    made.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    _revision(made)
    made.add_argument("--device", default="cpu", help="what quantises: cpu, cuda, cuda:N or auto (default: cpu)")
    _weights(made, "nf4")


def _evaluate(verb: MakeVerb) -> None:
    made = verb(
        "evaluate",
        verbs.evaluate,
        "score a model on a task",
        "halfbyte evaluate ./Llama-3.2-1B --task task.yaml --weights nf4",
    )
    made.add_argument("model", metavar="MODEL|RUN", help="a local folder, a hub id, or the folder of a run")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", type=Path, metavar="TASK.yaml", help="a task of your own")
    what.add_argument(
        "--harness", metavar="TASKS", help="tasks of EleutherAI's lm-evaluation-harness, e.g. gsm8k,arc_easy"
    )
    made.add_argument(
        "--harness-path",
        type=Path,
        metavar="DIR",
        help="with --harness: a folder with more of them; runs the code that they name",
    )
    made.add_argument("--shots", type=int, metavar="N", help="with --harness: examples before each prompt")
    made.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter in PEFT's format")
    _weights(made, "as stored, else nf4")
    _revision(made)
    _device(made)
    _compute(made)
    made.add_argument("--variant", help="name of the result's folder (default: base-WEIGHTS or tuned)")
    made.add_argument("--limit", type=int, help="only N of the items, always the same ones")
    made.add_argument(
        "--out", type=Path, help="folder (default: runs/<task name>/evaluations/<variant>); --harness: one a task in it"
    )
    _scorer(made)


def _tune(verb: MakeVerb) -> None:
    made = verb(
        "tune",
        verbs.tune,
        "fine-tune by LoRA through the frozen base; with a task: evaluate before and after",
        "halfbyte tune run.yaml --set tune.epochs=1 --set out=runs/short",
    )
    _run_file(made)
    made.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    made.add_argument("--force", action="store_true", help="start even if the plan says that it does not fit")
    _scorer(made)
    made.add_argument("--options", action=_Options, help="list every option with its default, unit and meaning")


def _sweep(verb: MakeVerb) -> None:
    made = verb(
        "sweep",
        verbs.sweep,
        "search the options of a run: trials, pruned by validation loss; the winner is scored once on the test set",
        "halfbyte sweep run.yaml space.yaml --trials 20",
    )
    _run_file(made, "run")
    made.add_argument("space", metavar="SPACE.yaml", type=Path, help="option: list of values, or {low, high, log}")
    made.add_argument(
        "--trials", type=int, default=20, metavar="N", help="of the study, earlier ones counted (default: 20)"
    )
    made.add_argument("--timeout", metavar="TIME", help="end after 90s, 30m or 2h; the trial at work goes on next time")
    made.add_argument("--storage", metavar="URL", help="postgresql://user@host/database that machines share; the "
                       "password in PGPASSWORD (default: OUT/study.db)")  # fmt: skip
    made.add_argument("--study", metavar="NAME", help="its name in there (default: that of RUN.yaml)")
    _scorer(made)
    made.add_argument("--out", type=Path, help="folder of the sweep (default: the run's, with -sweep)")


def _compare(verb: MakeVerb) -> None:
    made = verb(
        "compare",
        verbs.compare,
        "is B better than A? paired by item, with intervals; several are corrected together",
        "halfbyte compare runs/demo/evaluations/base-nf4 runs/demo/evaluations/tuned",
    )
    made.add_argument("results", nargs="+", metavar="FOLDER", type=Path, help="A, then the ones compared against it")
    made.add_argument("--metric", help="default: the main metric of the task's kind")
    made.add_argument(
        "--detect",
        type=float,
        metavar="X",
        help="also say how many items would detect a difference of X (2 points: 0.02)",
    )
    made.add_argument("--out", type=Path, help="write comparison.json to this file")
    made.add_argument("--report", type=Path, metavar="FILE.html", help="write one self-contained HTML page")
    made.add_argument("--json", action="store_true", help="print JSON")


def _results(verb: MakeVerb) -> None:
    made = verb(
        "results",
        verbs.results,
        "what has been scored on a task: a line for each result",
        "halfbyte results task.yaml",
    )
    made.add_argument("target", metavar="TASK.yaml|FOLDER", type=Path, help="a task, or a folder with evaluations")
    made.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="of a task: where its results are (default: runs, here and beside it)",
    )
    made.add_argument("--json", action="store_true", help="print JSON")


def _select(verb: MakeVerb) -> None:
    made = verb(
        "select",
        verbs.select,
        "which model? candidates scored on a task, beside what tuning them takes; what is finished is not done again",
        "halfbyte select task.yaml --candidates ./Llama-3.2-1B,org/name --budget 12GB --weights nf4,int8 --shots 0,4",
    )
    made.add_argument("task", metavar="TASK.yaml", type=Path)
    made.add_argument(
        "--candidates",
        required=True,
        metavar="A,B,...|FILE",
        help="local folders and hub ids (ID@REVISION), or a file with one a line; names of the catalogue are planned, "
        "not scored",
    )
    made.add_argument(
        "--budget",
        help="what tuning may take, weights included, e.g. 12GB (default: what is free); exit code 3: nothing fits",
    )
    made.add_argument(
        "--weights", metavar="W,W", help=f"formats to try: {', '.join(WEIGHTS)} (default: as packed already, else nf4)"
    )
    made.add_argument("--shots", metavar="N,N", help="examples before each prompt (default: the task's own)")
    made.add_argument("--run", type=Path, metavar="RUN.yaml", help="how it would be tuned (default: RUN's defaults)")
    made.add_argument("--probe", type=int, metavar="STEPS", help="tune the best for so many steps, and score again")
    made.add_argument("--probe-best", type=int, metavar="K", help="candidates that are probed (default: 3)")
    made.add_argument("--limit", type=int, help="only N of the items, always the same ones")
    _scorer(made)
    _device(made)
    made.add_argument("--out", type=Path, help="folder (default: runs/<task name>/select)")
    made.add_argument("--json", action="store_true", help="print select.json at the end, all else to standard error")


def _report(verb: MakeVerb) -> None:
    made = verb("report", verbs.report, "one self-contained HTML page about a run", "halfbyte report runs/demo")
    made.add_argument("run", metavar="RUN", type=Path, help="the folder that a run left, or its RUN.yaml")


def _verify(verb: MakeVerb) -> None:
    made = verb(
        "verify",
        verbs.verify,
        "what a run or an evaluation recorded, taken again (exit code 4: something differs)",
        "halfbyte verify runs/demo",
    )
    made.add_argument("run", metavar="RUN", type=Path, help="the folder of a run or an evaluation, or a RUN.yaml")
    made.add_argument("--all", action="store_true", help="also a line for each thing that agrees")
    _as_json(made)


def _generate(verb: MakeVerb) -> None:
    made = verb(
        "generate",
        verbs.generate,
        "try a model, base or tuned",
        'halfbyte generate runs/demo "Fire Truck is a LEGO set of 2015 with 300 pieces. Theme: City. Each costs $"',
    )
    made.add_argument("model", metavar="MODEL|RUN", help="a local folder, a hub id, or the folder of a run")
    made.add_argument("prompt", help="the text to go on from; - reads standard input")
    made.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter in PEFT's format")
    made.add_argument("--base", action="store_true", help="of a run: without its adapter")
    made.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default: 64)")
    made.add_argument("--stop", action="append", default=[], help="end before this text (may be given several times)")
    made.add_argument("--raw", action="store_true", help="no chat template, even if the model has one")
    _weights(made, "as stored, else nf4")
    _revision(made)
    _device(made)
    _compute(made)


def _doctor(verb: MakeVerb) -> None:
    made = verb("doctor", verbs.doctor, "the machine, the kernels chosen and why, what is missing", "halfbyte doctor")
    made.add_argument("--calibrate", action="store_true", help="measure this machine, so that plans give times (2 min)")


def _demo(verb: MakeVerb) -> None:
    made = verb(
        "demo", verbs.demo, "the whole story on a tiny model that the package ships, without a network", "halfbyte demo"
    )
    made.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")


def _compute(made: argparse.ArgumentParser) -> None:
    text = "type that is computed in (default: of a run, its own; else bf16, unless a measurement finds fp32 faster)"
    made.add_argument("--compute", choices=COMPUTE, help=text)


def _weights(made: argparse.ArgumentParser, default: str) -> None:
    made.add_argument("--weights", choices=WEIGHTS, help=f"format of the linear layers (default: {default})")


def _scorer(made: argparse.ArgumentParser) -> None:
    text = "the scoring function that a task of kind python may run; without it such a task is refused"
    made.add_argument("--scorer", metavar="FILE.py:FUNCTION", help=text)


def _revision(made: argparse.ArgumentParser) -> None:
    made.add_argument("--revision", help="branch, tag or commit of a hub model")


def _device(made: argparse.ArgumentParser) -> None:
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _as_json(made: argparse.ArgumentParser) -> None:
    made.add_argument("--json", action="store_true", help="print one JSON object")


def _run_file(made: argparse.ArgumentParser, whole: str = "file") -> None:
    """RUN.yaml, and the options that the command line overrides in it."""
    made.add_argument("run", metavar="RUN.yaml", type=Path)
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"override an option of the {whole}"
    )


class _Options(argparse.Action):
    """--options: the table of config.py."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from halfbyte.config import RunConfig
        from halfbyte.options import describe

        for key, default, unit, text in describe(RunConfig):
            print(f"{key:24} {default:14} {text}" + (f" [{unit}]" if unit else ""))
        sys.stdout.flush()  # here, where `main` still catches a reader that has gone
        parser.exit()
