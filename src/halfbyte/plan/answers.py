"""What the plan says beyond bytes: the device, the time, what fits, several devices. Put onto a finished `Plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from halfbyte.errors import ConfigError
from halfbyte.formats import QUANTISED
from halfbyte.plan import operations
from halfbyte.plan.advice import advise
from halfbyte.plan.calibration import Calibration, load
from halfbyte.plan.devices import Device
from halfbyte.plan.disk import disk_of
from halfbyte.plan.fit import survey
from halfbyte.plan.inventory import Inventory
from halfbyte.plan.operations import Work
from halfbyte.plan.parallel import on_paper
from halfbyte.plan.time import Length, Speed, Time, estimate, speed_of
from halfbyte.plan.weighing import mapped_bytes

if TYPE_CHECKING:
    from halfbyte.plan.ladder import Plan


def complete(
    make: Callable[..., Plan], inventory: Inventory, device: Device, *, ranks: int | None, link: str | int | None,
    length: Length | None,
) -> Plan:  # fmt: skip
    """The plan that `make()` gives (with other settings by name), with all answers in it."""
    plan = make()
    calibration, why = _calibration(device)
    speed, why = speed_of(_work(inventory, plan), plan.settings, calibration, why)
    time = _time(plan, inventory, speed, calibration, why, length)
    unit = "seconds" if calibration is not None else "multiplications"
    fit = survey(make, plan, inventory.config, lambda trial: _price(trial, inventory, calibration), unit)
    fit = dataclasses.replace(fit, advice=advise(make, plan, fit))
    ranks = device.count if ranks is None and device.count > 1 else ranks
    if link is not None and ranks is None:
        raise ConfigError("a link is between several devices, and this is one", where="--link", found=str(link),
                          do="add --gpus N, or leave --link away")  # fmt: skip
    parallel = on_paper(plan, ranks, link, time.step_seconds) if ranks is not None else None
    phases = {name: dataclasses.replace(phase, seconds=seconds) for (name, phase), seconds in
              zip(plan.phases.items(), _seconds(plan, time), strict=True)}  # fmt: skip
    disk = disk_of(inventory, plan.settings["weights"], plan.adapter_bytes, plan.optimiser_bytes,
                   here=device.here)  # fmt: skip
    return dataclasses.replace(
        plan,
        phases=phases,
        disk_bytes={"download": disk.download, "packed": disk.packed, "run": disk.run, "free": disk.free},
        reasons=[*plan.reasons, f"disk: {disk}", f"device {device.name}: {device.reason}", f"time: {time.reason}"],
        device=device.to_json(),
        time=dataclasses.asdict(time),
        fit=dataclasses.asdict(fit),
        parallel={} if parallel is None else dataclasses.asdict(parallel),
    )


def _calibration(device: Device) -> tuple[Calibration | None, str]:
    if device.kind == "cpu" and device.here:
        return load()
    return None, f"unknown, because only this machine's processor can be calibrated, and this is for {device.name}"


def _work(inventory: Inventory, plan: Plan) -> Work | None:
    """What operations are counted from; None where some of them are not known."""
    if inventory.dims is None or inventory.parameters is None or plan.expert_parameters or not inventory.linears:
        return None
    settings = plan.settings
    return operations.work(inventory.linears, inventory.dims, settings["rank"], settings["targets"], inventory.config)


def _price(plan: Plan, inventory: Inventory, calibration: Calibration | None) -> float | None:
    """Seconds of a step of `plan`; without a calibration its multiplications, which only their ratio makes use of."""
    work, settings = _work(inventory, plan), plan.settings
    if work is None:
        return None
    speed, _ = speed_of(work, settings, calibration, "")
    if speed is not None:
        return speed.step(settings["batch"], settings["sequence"], settings["recompute"])
    if calibration is not None:
        return None
    return operations.multiplications(work, settings["batch"] * settings["sequence"], settings["recompute"])


def _time(
    plan: Plan, inventory: Inventory, speed: Speed | None, calibration: Calibration | None, why: str,
    length: Length | None,
) -> Time:  # fmt: skip
    if speed is None or calibration is None:
        return Time(False, why)
    pack = None
    quantises = plan.settings["weights"] in QUANTISED  # a copy that only converts was not timed
    if plan.phases["pack"].parts and quantises and inventory.parameters is not None:
        units = operations.packing(2 * inventory.parameters, len(inventory.tensors))
        pack = speed.costs["pack"].seconds(units)
        if rate := calibration.rates.get("write"):
            pack = max(pack, (mapped_bytes(inventory, plan.settings["weights"]) or 0) / rate)
    settings, tune = plan.settings, plan.phases["tune"]
    held = (tune.peak_bytes or 0) + (tune.mapped_bytes or 0)
    if plan.memory_bytes is not None and held > plan.memory_bytes:
        why += "; the mapped weights do not stay in memory, and reading them from disk again is not counted"
    return estimate(speed, why, batch=settings["batch"], sequence=settings["sequence"],
                    recomputed=settings["recompute"], evaluation_batch=settings["evaluation_batch"], pack=pack,
                    length=length)  # fmt: skip


def _seconds(plan: Plan, time: Time) -> list[float | None]:
    found = {"pack": time.pack_seconds, "evaluate": time.evaluate.get("seconds"), "tune": time.step_seconds}
    return [found.get(name) for name in plan.phases]
