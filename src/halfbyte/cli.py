"""The command line: one verb a stage. No logic: a verb reads its options, calls the stage and prints what it gives.

Nothing heavy is imported before a verb runs, so that `--help` and `plan` answer at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from halfbyte import __version__
from halfbyte.errors import ConfigError, HalfbyteError
from halfbyte.formats import COMPUTE, WEIGHTS
from halfbyte.memory import ran_out

if TYPE_CHECKING:
    from rich.console import Console

Handler = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0 done, 1 failed, 2 wrong options, 3 does not fit, 4 a record is contradicted
    (`verify`), 130 stopped by Ctrl-C or SIGTERM."""
    parser, options = _parser(), argparse.Namespace(debug=False)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "off")  # no warnings at forks; Encoder knows this word
    try:
        with _sigterm_as_ctrl_c():
            options = parser.parse_args(arguments)
            if not hasattr(options, "handler"):
                parser.print_help()
                return 2
            code: int = options.handler(options)
            sys.stdout.flush()
            return code
    except HalfbyteError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, and nothing that is half written counts", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.debug:
            raise
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 1


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM unwinds a verb as Ctrl-C does, so that it can clear up behind it."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: whoever runs it handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_words(error: Exception) -> str:
    """What to say of an error that no verb has made words of."""
    if ran_out(error):
        return "memory ran out\n  do: see `halfbyte plan`, close other programs, or take a smaller model"
    if isinstance(error, OSError):
        full = error.errno == errno.ENOSPC
        do = "free some disk space" if full else "run again with --debug for details"
        return f"{error.strerror or error}\n  where: {error.filename or 'unknown'}\n  do: {do}"
    return f"{type(error).__name__}: {error}\n  do: a fault of halfbyte; run again with --debug and report it"


class _Parser(argparse.ArgumentParser):
    """Its errors are ours, so that a wrong option looks like any other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            "the command line can't be read", where=self.prog, found=message, do=f"see: {self.prog} --help"
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="halfbyte",
        description="Fine-tune an open model in half a byte a weight on the machine you have; prove it got better.",
        epilog="Start with: halfbyte demo",
    )
    parser.add_argument("--version", action="version", version=f"halfbyte {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    def verb(name: str, handler: Handler, text: str, example: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        made.set_defaults(handler=handler)
        return made

    def compute(made: argparse.ArgumentParser) -> None:
        text = (
            "type that is computed in (default: of a run, its own; else bf16, unless a measurement finds fp32 faster)"
        )
        made.add_argument("--compute", choices=COMPUTE, help=text)

    def weights(made: argparse.ArgumentParser, default: str) -> None:
        made.add_argument("--weights", choices=WEIGHTS, help=f"format of the linear layers (default: {default})")

    def scorer(made: argparse.ArgumentParser) -> None:
        text = "the scoring function that a task of kind python may run; without it such a task is refused"
        made.add_argument("--scorer", metavar="FILE.py:FUNCTION", help=text)

    plan = verb(
        "plan",
        _plan,
        "what a model weighs, what a run needs, what fits here (exit code 3: does not fit; 0: fits, or unknown)",
        "halfbyte plan llama-3.1-8b --lora-rank 32 --lora-targets attention",
    )
    plan.add_argument(
        "model",
        metavar="MODEL|RUN",
        nargs="*",
        help="a local folder, a name from the catalogue, a hub id, or a RUN.yaml; several are compared in one table",
    )
    plan.add_argument("--revision", help="branch, tag or commit of a hub model")
    plan.add_argument("--lora-rank", type=int, help="rank of the adapter (default: 16)")
    plan.add_argument(
        "--lora-targets", help="all, attention, or names and patterns, separated by commas (default: all)"
    )
    weights(plan, "as packed already, else nf4")
    plan.add_argument("--sequence", type=int, help="longest item in tokens (default: 512; of a run: of its data)")
    plan.add_argument("--batch", type=int, help="items computed at once (default: 1; of a run: as tune chooses)")
    plan.add_argument(
        "--memory", help="what the run may take, mapped weights included, e.g. 8GB (default: what is free)"
    )
    plan.add_argument("--list", action="store_true", help="the catalogue, or of it what has a given word in its name")
    plan.add_argument("--sources", action="store_true", help="where each figure comes from; who disagrees")
    plan.add_argument(
        "--device", help="auto, cpu, cuda:N, a card (T4), memory (24GB), several (2x80GB) (default: auto)"
    )
    plan.add_argument("--gpus", type=int, metavar="N", help="training on N devices, on paper")
    plan.add_argument("--link", help="what each of them sends, e.g. 50GB/s (default: 16GB/s)")
    plan.add_argument("--check", action="store_true", help="of a run's folder: what was planned and what was measured")
    plan.add_argument("--json", action="store_true", help="print one JSON object")

    check = verb(
        "check",
        _check,
        "the data of a run, before anything is loaded: what would go wrong silently (exit code 1: errors)",
        "halfbyte check run.yaml",
    )
    check.add_argument("run", metavar="RUN.yaml", type=Path)
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override an option of the file")
    check.add_argument("--json", action="store_true", help="print one JSON object")

    pack = verb(
        "pack",
        _pack,
        "write a checkpoint in another format, in bitsandbytes' layout",
        "halfbyte pack ./Llama-3.1-8B ./Llama-3.1-8B-nf4 --weights nf4",
    )
    pack.add_argument("model", metavar="MODEL", help="a local folder or a hub id, in 16 or 32 bits")
    pack.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    pack.add_argument("--revision", help="branch, tag or commit of a hub model")
    pack.add_argument("--device", default="cpu", help="what quantises: cpu, cuda, cuda:N or auto (default: cpu)")
    weights(pack, "nf4")

    evaluate = verb(
        "evaluate",
        _evaluate,
        "score a model on a task",
        "halfbyte evaluate ./Llama-3.2-1B --task task.yaml --weights nf4",
    )
    evaluate.add_argument("model", metavar="MODEL|RUN", help="a local folder, a hub id, or the folder of a run")
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", type=Path, metavar="TASK.yaml", help="a task of your own")
    what.add_argument(
        "--harness", metavar="TASKS", help="tasks of EleutherAI's lm-evaluation-harness, e.g. gsm8k,arc_easy"
    )
    evaluate.add_argument(
        "--harness-path",
        type=Path,
        metavar="DIR",
        help="with --harness: a folder with more of them; runs the code that they name",
    )
    evaluate.add_argument("--shots", type=int, metavar="N", help="with --harness: examples before each prompt")
    evaluate.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter in PEFT's format")
    weights(evaluate, "as stored, else nf4")
    evaluate.add_argument("--revision", help="branch, tag or commit of a hub model")
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    compute(evaluate)
    evaluate.add_argument("--variant", help="name of the result's folder (default: base-WEIGHTS or tuned)")
    evaluate.add_argument("--limit", type=int, help="only N of the items, always the same ones")
    evaluate.add_argument(
        "--out", type=Path, help="folder (default: runs/<task name>/evaluations/<variant>); --harness: one a task in it"
    )
    scorer(evaluate)

    tune = verb(
        "tune",
        _tune,
        "fine-tune by LoRA through the frozen base; with a task: evaluate before and after",
        "halfbyte tune run.yaml --set tune.epochs=1 --set out=runs/short",
    )
    tune.add_argument("run", metavar="RUN.yaml", type=Path)
    tune.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override an option of the file")
    tune.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    tune.add_argument("--force", action="store_true", help="start even if the plan says that it does not fit")
    scorer(tune)
    tune.add_argument("--options", action=_Options, help="list every option with its default, unit and meaning")

    sweep = verb(
        "sweep",
        _sweep,
        "search the options of a run: trials, pruned by validation loss; the winner is scored once on the test set",
        "halfbyte sweep run.yaml space.yaml --trials 20",
    )
    sweep.add_argument("run", metavar="RUN.yaml", type=Path)
    sweep.add_argument("space", metavar="SPACE.yaml", type=Path, help="option: list of values, or {low, high, log}")
    sweep.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override an option of the run")
    sweep.add_argument(
        "--trials", type=int, default=20, metavar="N", help="of the study, earlier ones counted (default: 20)"
    )
    sweep.add_argument(
        "--timeout", metavar="TIME", help="end after 90s, 30m or 2h; the trial at work goes on next time"
    )
    sweep.add_argument("--storage", metavar="URL", help="postgresql://user@host/database that machines share; the "
                       "password in PGPASSWORD (default: OUT/study.db)")  # fmt: skip
    sweep.add_argument("--study", metavar="NAME", help="its name in there (default: that of RUN.yaml)")
    scorer(sweep)
    sweep.add_argument("--out", type=Path, help="folder of the sweep (default: the run's, with -sweep)")

    compare = verb(
        "compare",
        _compare,
        "is B better than A? paired by item, with intervals; several are corrected together",
        "halfbyte compare runs/demo/evaluations/base-nf4 runs/demo/evaluations/tuned",
    )
    compare.add_argument("results", nargs="+", metavar="FOLDER", type=Path, help="A, then the ones compared against it")
    compare.add_argument("--metric", help="default: the main metric of the task's kind")
    compare.add_argument(
        "--detect",
        type=float,
        metavar="X",
        help="also say how many items would detect a difference of X (2 points: 0.02)",
    )
    compare.add_argument("--out", type=Path, help="write comparison.json to this file")
    compare.add_argument("--report", type=Path, metavar="FILE.html", help="write one self-contained HTML page")
    compare.add_argument("--json", action="store_true", help="print JSON")

    results = verb(
        "results",
        _results,
        "what has been scored on a task: a line for each result",
        "halfbyte results task.yaml",
    )
    results.add_argument("target", metavar="TASK.yaml|FOLDER", type=Path, help="a task, or a folder with evaluations")
    results.add_argument(
        "--runs", type=Path, default=Path("runs"), help="of a task: the folder with its results (default: runs)"
    )
    results.add_argument("--json", action="store_true", help="print JSON")

    select = verb(
        "select",
        _select,
        "which model? candidates scored on a task, beside what tuning them takes; what is finished is not done again",
        "halfbyte select task.yaml --candidates ./Llama-3.2-1B,org/name --budget 12GB --weights nf4,int8 --shots 0,4",
    )
    select.add_argument("task", metavar="TASK.yaml", type=Path)
    select.add_argument(
        "--candidates",
        required=True,
        metavar="A,B,...|FILE",
        help="local folders and hub ids (ID@REVISION), or a file with one a line; names of the catalogue are planned, "
        "not scored",
    )
    select.add_argument(
        "--budget",
        help="what tuning may take, weights included, e.g. 12GB (default: what is free); exit code 3: nothing fits",
    )
    select.add_argument(
        "--weights", metavar="W,W", help=f"formats to try: {', '.join(WEIGHTS)} (default: as packed already, else nf4)"
    )
    select.add_argument("--shots", metavar="N,N", help="examples before each prompt (default: the task's own)")
    select.add_argument("--run", type=Path, metavar="RUN.yaml", help="how it would be tuned (default: RUN's defaults)")
    select.add_argument("--probe", type=int, metavar="STEPS", help="tune the best for so many steps, and score again")
    select.add_argument("--probe-best", type=int, metavar="K", help="candidates that are probed (default: 3)")
    select.add_argument("--limit", type=int, help="only N of the items, always the same ones")
    scorer(select)
    select.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    select.add_argument("--out", type=Path, help="folder (default: runs/<task name>/select)")
    select.add_argument("--json", action="store_true", help="print select.json at the end, all else to standard error")

    report = verb("report", _report, "one self-contained HTML page about a run", "halfbyte report runs/demo")
    report.add_argument("run", metavar="RUN", type=Path, help="the folder that a run left, or its RUN.yaml")

    verify = verb(
        "verify",
        _verify,
        "what a run or an evaluation recorded, taken again (exit code 4: something differs)",
        "halfbyte verify runs/demo",
    )
    verify.add_argument("run", metavar="RUN", type=Path, help="the folder of a run or an evaluation, or a RUN.yaml")
    verify.add_argument("--json", action="store_true", help="print one JSON object")

    generate = verb(
        "generate",
        _generate,
        "try a model, base or tuned",
        'halfbyte generate runs/demo "Fire Truck is a LEGO set of 2015 with 300 pieces. Theme: City. Each costs $"',
    )
    generate.add_argument("model", metavar="MODEL|RUN", help="a local folder, a hub id, or the folder of a run")
    generate.add_argument("prompt", help="the text to go on from; - reads standard input")
    generate.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter in PEFT's format")
    generate.add_argument("--base", action="store_true", help="of a run: without its adapter")
    generate.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default: 64)")
    generate.add_argument(
        "--stop", action="append", default=[], help="end before this text (may be given several times)"
    )
    generate.add_argument("--raw", action="store_true", help="no chat template, even if the model has one")
    weights(generate, "as stored, else nf4")
    generate.add_argument("--revision", help="branch, tag or commit of a hub model")
    generate.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    compute(generate)

    doctor = verb("doctor", _doctor, "the machine, the kernels chosen and why, what is missing", "halfbyte doctor")
    doctor.add_argument(
        "--calibrate", action="store_true", help="measure this machine, so that plans give times (1 min)"
    )

    demo = verb(
        "demo", _demo, "the whole story on a tiny model that the package ships, without a network", "halfbyte demo"
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    return parser


class _Options(argparse.Action):
    """--options: the table of config.py."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from halfbyte.config import RunConfig, describe

        for key, default, unit, text in describe(RunConfig):
            print(f"{key:24} {default:14} {text}" + (f" [{unit}]" if unit else ""))
        sys.stdout.flush()  # here, where `main` still catches a reader that has gone
        parser.exit()


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _plan(options: argparse.Namespace) -> int:
    from halfbyte import planning

    return planning.plan(options, _console())


def _check(options: argparse.Namespace) -> int:
    from halfbyte import checking

    return checking.check(options.run, options.set, as_json=options.json, console=_console())


def _pack(options: argparse.Namespace) -> int:
    from halfbyte import pipeline

    pipeline.pack_model(options.model, options.out, options.weights or "nf4", options.revision, _console(),
                        options.device)  # fmt: skip
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from halfbyte import pipeline

    common = {
        name: getattr(options, name)
        for name in ("adapter", "weights", "revision", "device", "compute", "variant", "limit", "out")
    }
    if options.harness is not None:
        if options.scorer is not None:
            raise ConfigError("--scorer belongs to --task", do="leave it out: the harness judges its own tasks")
        pipeline.evaluate_harness(options.model, options.harness, path=options.harness_path, shots=options.shots,
                                  console=_console(), **common)  # fmt: skip
    elif options.harness_path is not None or options.shots is not None:
        raise ConfigError("--harness-path and --shots belong to --harness", found="--task",
                          do="leave them out: a task has its own data and shots")  # fmt: skip
    else:
        pipeline.evaluate_model(options.model, options.task, console=_console(), scorer=options.scorer, **common)
    return 0


def _tune(options: argparse.Namespace) -> int:
    from halfbyte import experiment
    from halfbyte.config import load_run

    config = load_run(options.run, options.set)
    return experiment.tune_by_ranks(
        config, resume=options.resume, force=options.force, console=_console(), scorer=options.scorer
    )


def _sweep(options: argparse.Namespace) -> int:
    from halfbyte import sweeping

    return sweeping.sweep(
        options.run,
        options.space,
        options.set,
        trials=options.trials,
        timeout=options.timeout,
        storage=options.storage,
        study_name=options.study,
        out=options.out,
        console=_console(),
        scorer=options.scorer,
    )


def _compare(options: argparse.Namespace) -> int:
    from halfbyte import pipeline

    pipeline.compare(
        options.results,
        metric=options.metric,
        detect=options.detect,
        out=options.out,
        page=options.report,
        as_json=options.json,
        console=_console(),
    )
    return 0


def _results(options: argparse.Namespace) -> int:
    from halfbyte import pipeline

    pipeline.results(options.target, options.runs, options.json, _console())
    return 0


def _select(options: argparse.Namespace) -> int:
    from halfbyte import selecting

    return selecting.select(options, _console())


def _report(options: argparse.Namespace) -> int:
    from halfbyte import pipeline
    from halfbyte.report.page import report

    print(report(pipeline.run_folder(options.run)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from halfbyte import verifying

    return verifying.verify(options.run, options.json, _console())


def _generate(options: argparse.Namespace) -> int:
    from halfbyte import pipeline

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    print(pipeline.generate_text(options, prompt, _console(stderr=True)))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from halfbyte.plan.doctor import doctor, render_doctor

    if options.calibrate:
        from halfbyte import pipeline

        pipeline.calibrate_machine(_console())
    findings = doctor()
    return render_doctor(findings, _console())


def _demo(options: argparse.Namespace) -> int:
    from halfbyte import experiment

    return experiment.demo(options.out, _console())
