"""The verbs that need more than one stage; `experiment.py` holds those that run a whole experiment."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from halfbyte.config import RunConfig, TaskConfig, load_run
from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.formats import Weights
from halfbyte.progress import bytes_bar, items_bar


@dataclass(frozen=True)
class Target:
    """What MODEL or RUN on a command line stands for."""

    model: str
    revision: str | None
    weights: Weights | None
    adapter: Path | None
    run: Path | None  # the run's folder
    compute: str = "auto"
    compute_from: str = "as asked"  # why it is that one, where it is not "auto"
    stream: str = "auto"


def run_folder(path: Path) -> Path:
    """The folder of the run that `path` (that folder, or a RUN.yaml) names. Raises ConfigError when there is none."""
    if path.is_file():
        path = Path(load_run(path).out)
    if not (path / "run.yaml").is_file():
        found = "no run.yaml in it" if path.is_dir() else "no such folder"
        raise ConfigError("this is no run", where=path, found=found, do="start one: halfbyte tune RUN.yaml")
    return path


def no_short_name(model: str) -> None:
    """Raises ConfigError for a name that only the catalogue knows: it has shapes, but no weights."""
    from halfbyte.plan import catalogue

    if "/" in model or Path(model).expanduser().exists():
        return
    entry = catalogue.lookup(model)
    if entry is not None:
        raise ConfigError("this is a short name of the catalogue, which only `halfbyte plan` knows", where=model,
                          do=f"write the hub id, {entry.name}, or name a local folder")  # fmt: skip


def require_model(model: str) -> None:
    """Raises ConfigError or CheckpointError for the model of a run that is neither a folder nor a hub id, which names
    its owner."""
    from halfbyte.checkpoint.local import not_here

    no_short_name(model)
    if "/" not in model and not Path(model).expanduser().exists():
        raise not_here(model)


def resolve(
    target: str,
    adapter: Path | None,
    weights: Weights | None,
    revision: str | None,
    *,
    base: bool = False,
    compute: str | None = None,
) -> Target:
    """Tell a run from a model; what is named on the command line goes before what the run says. `base`: no adapter."""
    path = Path(target)
    is_run = (path / "run.yaml").is_file() or (path.is_file() and path.suffix in (".yaml", ".yml"))
    if not is_run:
        no_short_name(target)
        return Target(target, revision, weights, adapter, None, compute or "auto")
    folder = run_folder(path)
    config = load_run(folder / "run.yaml")
    own = folder / "adapter"
    weights, why = weights or cast(Weights, config.weights), "as asked" if compute else "as the run was trained"
    compute = compute or config.compute
    if base:
        return Target(config.model, config.revision, weights, None, folder, compute, why)
    if adapter is None and not (own / "adapter_config.json").is_file():
        raise CheckpointError("the run has no adapter yet", where=folder, do="finish it: halfbyte tune ... --resume")
    return Target(config.model, config.revision, weights, adapter or own, folder, compute, why)


def calibrate_machine(console: Console) -> None:
    """`halfbyte doctor --calibrate`: measure, and keep it in the cache."""
    from halfbyte.calibrate import calibrate
    from halfbyte.plan.calibration import store

    console.print("measuring this machine; leave it alone for a minute or two")
    try:
        made = calibrate(lambda line: console.print(f"  {line}", markup=False))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; half a calibration is none: what was there before still counts") from None
    console.print(f"kept in {store(made)}", markup=False)


def pack_model(
    model: str, out: Path, weights: Weights, revision: str | None, console: Console, device: str = "cpu"
) -> None:
    """`halfbyte pack`."""
    from halfbyte.checkpoint.pack import pack
    from halfbyte.checkpoint.source import open_checkpoint
    from halfbyte.kernels.faults import explain_lost_pages
    from halfbyte.model.build import choose_device

    no_short_name(model)
    explain_lost_pages(model)
    where, reason = choose_device(device)
    checkpoint = open_checkpoint(model, revision)
    if device != "cpu":
        console.print(f"device {where}: {reason}", markup=False)
    with bytes_bar(console) as progress:
        report = pack(checkpoint, out, weights, device=where, progress=progress)
    if report.already:
        console.print(f"{out} holds this checkpoint in {weights} already: nothing was done", markup=False)
        return
    memory = f", peak memory {report.peak_bytes / 1e9:.2f} GB" if report.peak_bytes else ""
    console.print(f"{out}: {report.nbytes:,} bytes in {report.seconds:.1f} s{memory}", markup=False)
    if report.quantised:
        console.print(f"{report.quantised} linear layers in {weights}: {report.quantised_nbytes:,} bytes", markup=False)
    for left in report.left:
        console.print(f"in 16 bits: {left.name}, {left.nbytes:,} bytes ({left.reason})", markup=False)


def with_training_median(task: TaskConfig, config: RunConfig) -> TaskConfig:
    """A number task that names no training data takes the run's: an answer without a number counts as its median."""
    if task.kind != "number" or task.fallback is not None or task.train is not None or not config.data.train:
        return task
    from halfbyte.data.dataset import training_median
    from halfbyte.data.template import load_examples

    return dataclasses.replace(task, fallback=training_median(load_examples(config.data.train, config.data.template)))


def compare(
    folders: list[Path],
    *,
    metric: str | None,
    detect: float | None,
    out: Path | None,
    page: Path | None,
    as_json: bool,
    console: Console,
) -> None:
    """`halfbyte compare A B ...`: each of B ... against A."""
    from halfbyte.evaluate.compare import compare_several
    from halfbyte.evaluate.results import refused
    from halfbyte.evaluate.show import print_comparisons

    if len(folders) < 2:
        raise ConfigError("a comparison needs two results", found=str(folders[0]), do="halfbyte compare A B")
    made = compare_several(folders, metric=metric, detect=detect)
    whole = made[0] if len(made) == 1 else made
    if as_json:
        print(json.dumps(whole, indent=2))
    else:
        print_comparisons(made, console)
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise refused(out, error) from None
    if page is not None:
        from halfbyte.report.comparison import write_page

        write_page(page, folders, made)
        if not as_json:
            console.print(f"report: {page}", markup=False)


def results(target: Path, runs: Path | None, as_json: bool, console: Console) -> None:
    """`halfbyte results TASK.yaml|FOLDER`: a line for each result."""
    from halfbyte.evaluate.listing import list_results
    from halfbyte.evaluate.show import print_results

    rows = list_results(target, runs=runs)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_results(rows, console)


def generate_text(options: argparse.Namespace, prompt: str, console: Console) -> str:
    """`halfbyte generate`: the answer to one prompt."""
    from halfbyte.config import DecodingConfig
    from halfbyte.data.encode import Encoder
    from halfbyte.data.template import Example
    from halfbyte.evaluate.generate import end_tokens, generate

    what = resolve(options.model, options.adapter, options.weights, options.revision, base=options.base,
                   compute=options.compute)  # fmt: skip
    if options.max_new_tokens < 1:
        raise ConfigError("--max-new-tokens must be at least 1", found=str(options.max_new_tokens),
                          do="give the most tokens that an answer may have, e.g. 64")  # fmt: skip
    model = load(what, options.device, console)
    chat = "off" if options.raw else "auto"
    if what.run and not options.raw:
        chat = load_run(what.run / "run.yaml").data.chat
    encoder = Encoder(model.tokenizer, chat)
    ids = encoder.prompt(Example.of_prompt(prompt))
    decoding = DecodingConfig(max_new_tokens=options.max_new_tokens, stop=options.stop)
    made = generate(model, [ids], decoding, ends=encoder.stops | end_tokens(model), settle=False)
    speed = f", {made.tokens_per_second:.1f} tokens/s" if made.tokens_per_second else ""
    console.print(f"{len(made.ids[0])} tokens in {made.seconds:.2f} s{speed}", style="dim")
    return made.texts[0]


def say_compute(model: Any, console: Console) -> None:
    """The compute type and why."""
    console.print(f"compute {model.compute}: {model.dtype_reason}", markup=False)


def prepare(what: Target, device: str, console: Console) -> bool:
    """Pack the model into the cache if it is not in the wanted format yet; whether anything was packed.

    Raises ConfigError for a device that is not here, before anything is packed."""
    from halfbyte.kernels.faults import explain_lost_pages
    from halfbyte.model.build import choose_device, open_packed

    choose_device(device)
    explain_lost_pages(what.model)
    packed = False
    with bytes_bar(console) as bar:

        def progress(name: str, done: int, total: int) -> None:
            nonlocal packed
            packed = True
            bar(name, done, total)

        open_packed(what.model, what.revision, what.weights, progress=progress)
    return packed


def load(what: Target, device: str, console: Console) -> Any:
    from halfbyte.kernels.faults import explain_lost_pages
    from halfbyte.model.build import load_model

    explain_lost_pages(what.model)
    with bytes_bar(console) as progress:
        model = load_model(
            what.model,
            revision=what.revision,
            weights=what.weights,
            adapter=what.adapter,
            device=device,
            compute=what.compute,
            stream=what.stream,
            progress=progress,
        )
    if what.compute != "auto" and model.dtype_reason == "as asked":
        model.dtype_reason = what.compute_from
    return model


def saying(console: Console, what: str) -> Callable[[str], None]:
    """Prints what an evaluation says of itself, with `what` it is before."""
    return lambda text: console.print(f"{what} {text}", markup=False, soft_wrap=True)


def evaluate(
    model: Any,
    task: TaskConfig,
    folder: Path,
    variant: str,
    console: Console,
    *,
    limit: int | None = None,
    seed: int = 0,
    leaks: Sequence[str] = (),
) -> dict[str, Any]:
    from halfbyte.evaluate.evaluate import evaluate_task
    from halfbyte.memory import give_back

    give_back()
    with items_bar(console, f"evaluate {variant}") as progress:
        return evaluate_task(
            model, task, folder, variant=variant, seed=seed, limit=limit, progress=progress, leaks=leaks,
            say=saying(console, variant),
        )  # fmt: skip
