"""One verb a stage. No logic: a verb reads its options, calls the stage and returns the exit code.

Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from halfbyte.errors import ConfigError, printable

if TYPE_CHECKING:
    from halfbyte.output import Output

Verb = Callable[[argparse.Namespace], int]


def _console(*, works: bool = False, stderr: bool = False) -> Output:
    """`works`: for a verb that does more than print."""
    from halfbyte.output import Output

    return Output(works=works, stderr=stderr)


def plan(options: argparse.Namespace) -> int:
    from halfbyte import planning

    return planning.plan(options, _console())


def check(options: argparse.Namespace) -> int:
    from halfbyte import checking

    return checking.check(options.run, options.set, as_json=options.json, console=_console())


def pack(options: argparse.Namespace) -> int:
    from halfbyte import pipeline

    pipeline.pack_model(options.model, options.out, options.weights or "nf4", options.revision, _console(works=True),
                        options.device)  # fmt: skip
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from halfbyte import evaluating

    names = ("adapter", "weights", "revision", "device", "compute", "variant", "limit", "out")
    asked = evaluating.Asked(options.model, **{name: getattr(options, name) for name in names})
    if options.harness is not None:
        if options.scorer is not None:
            raise ConfigError("--scorer belongs to --task", do="leave it out: the harness judges its own tasks")
        evaluating.evaluate_harness(asked, options.harness, path=options.harness_path, shots=options.shots,
                                    console=_console(works=True))  # fmt: skip
    elif options.harness_path is not None or options.shots is not None:
        raise ConfigError("--harness-path and --shots belong to --harness", found="--task",
                          do="leave them out: a task has its own data and shots")  # fmt: skip
    else:
        evaluating.evaluate_model(asked, options.task, console=_console(works=True), scorer=options.scorer)
    return 0


def tune(options: argparse.Namespace) -> int:
    from halfbyte import experiment
    from halfbyte.config import load_run

    config = load_run(options.run, options.set)
    return experiment.tune_by_ranks(
        config, resume=options.resume, force=options.force, console=_console(works=True), scorer=options.scorer
    )


def sweep(options: argparse.Namespace) -> int:
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
        console=_console(works=True),
        scorer=options.scorer,
    )


def compare(options: argparse.Namespace) -> int:
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


def results(options: argparse.Namespace) -> int:
    from halfbyte import pipeline

    pipeline.results(options.target, options.runs, options.json, _console())
    return 0


def select(options: argparse.Namespace) -> int:
    from halfbyte import selecting

    return selecting.select(options, _console(works=True))


def report(options: argparse.Namespace) -> int:
    from halfbyte import pipeline
    from halfbyte.report.page import report

    print(report(pipeline.run_folder(options.run)))
    return 0


def verify(options: argparse.Namespace) -> int:
    from halfbyte import verifying

    return verifying.verify(options.run, options.json, _console(), whole=options.all)


def generate(options: argparse.Namespace) -> int:
    from halfbyte import pipeline

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    answer = pipeline.generate_text(options, prompt, _console(stderr=True))
    print(printable(answer) if sys.stdout.isatty() else answer)
    return 0


def doctor(options: argparse.Namespace) -> int:
    from halfbyte.plan.doctor import doctor, render_doctor

    if options.calibrate:
        from halfbyte import pipeline

        pipeline.calibrate_machine(_console(works=True))
    findings = doctor()
    return render_doctor(findings, _console())


def demo(options: argparse.Namespace) -> int:
    from halfbyte import experiment

    return experiment.demo(options.out, _console(works=True))
