"""Several processes of one machine that train one adapter together (data parallel), as `torchrun` starts them.

Method. Every rank holds the whole model, mapped from one file, and the whole adapter. A step's items are those of a
single process in the same order; rank r takes every count-th of them from the r-th on, so that lengths are shared, too.
Each divides its loss by the learned tokens of the whole step, so the plain sum of the gradients is the gradient of one
process, to rounding, whatever the number of ranks and however the items fall; a rank without an item adds zeros.

The gradients lie in one flat buffer, which is summed once a step: it is the adapter's alone, so the sum takes
milliseconds of a step of seconds. DistributedDataParallel would hide some of them behind the last backward pass; it
would also average where tokens have to weigh, hold its buckets beside the gradients, and change the names of modules.

Nothing waits for ever. What all must agree on is met in one place (`_meet`), where a rank says whether it goes on or
was asked to stop. A rank that fails closes its connections, which wakes those that wait for it. The first to fail
leaves its number in torchrun's store and speaks; the others leave without a word and with its exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from halfbyte.errors import ConfigError, HalfbyteError, TrainingError, exit_code_of
from halfbyte.memory import ran_out
from halfbyte.tune.stop import Stopped, numbers

if TYPE_CHECKING:
    from halfbyte.tune.state import State

# A rank that ends is noticed at once, so this is only for one that lives and hangs; evaluating may take hours.
WAIT, _START = timedelta(hours=24), timedelta(minutes=5)
LEAVE = 10.0  # seconds that the rank that speaks waits for the others, so that torchrun does not end them in its stead
_STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_CLOSED = ("closed by peer", "reset by peer", "broken pipe")  # gloo's words where the other end is gone
_GOES_ON, _STOPPED = 0, 1
_APART = 0x9E3779B97F4A7C15  # between the seeds of two ranks
_END, _LEFT = "end", "left"  # keys of the store: rank and exit code of the first to fail; how many have left

T = TypeVar("T")


class OtherFailed(HalfbyteError):
    """Another rank is not reached any more: it has failed, was killed, or the connection broke."""


@dataclass
class Sum:
    """What a rank adds in a block that all leave together, and after it the sum over all."""

    value: float = 0.0


class Ranks:
    """A process that trains alone: it waits for nobody, and what it adds is the sum."""

    rank, count = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that packs, evaluates, writes and speaks."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device of this rank, of what the run asks for."""
        return asked

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items of a step, or of a validation, that this rank takes."""
        return items[self.rank :: self.count]

    def seed(self, seed: int) -> int:
        """A seed of this rank's own: ranks have different items, so their dropout masks are different, too."""
        return (seed + self.rank * _APART) % 2**63

    def wait(self) -> None:
        """Until all ranks are here."""

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on all of them."""
        return make()

    @contextmanager
    def together(self) -> Iterator[Sum]:
        """A block that all ranks leave together, with the sum of what each has put into `value`; where one of them
        raises, none goes on. Raises Stopped, OtherFailed."""
        yield Sum()

    def add_gradients(self, state: State) -> None:
        """Make every rank's gradients the sum over all of them."""

    def spread(self, state: State) -> None:
        """Give all ranks the first one's state, so that they go on from the same."""

    def part(self) -> None:
        """From here on each goes its own way."""


class Joined(Ranks):
    """One of the ranks that `torchrun` started."""

    def __init__(self, asked: str) -> None:
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        store, self.rank, self.count = next(rendezvous("env://", timeout=_START))
        self._local, self._dist = int(os.environ["LOCAL_RANK"]), dist
        self._store = PrefixStore("halfbyte", store)
        if sys.platform == "linux":  # one machine: no network card, name server or firewall has a say
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        cuda = asked.startswith(("cuda", "auto")) and torch.cuda.is_available()
        self._device = f"cuda:{self._local}" if cuda else asked
        if cuda and self._local < torch.cuda.device_count():
            torch.cuda.set_device(self._local)
        dist.init_process_group("nccl" if cuda else "gloo", store=PrefixStore("groups", store), rank=self.rank,
                                world_size=self.count, timeout=WAIT)  # fmt: skip
        self._control: Any = dist.new_group(backend="gloo", timeout=WAIT)
        self._sums: Any = dist.group.WORLD if cuda else self._control

    def device(self, asked: str) -> str:
        if ":" in asked:
            raise ConfigError(f"{self.count} processes can't share one device", where="device", found=repr(asked),
                              do="use auto, cuda or cpu; to choose cards: CUDA_VISIBLE_DEVICES=1,2")  # fmt: skip
        return self._device

    def wait(self) -> None:
        self._meet(_GOES_ON)

    def from_first(self, make: Callable[[], T]) -> T:
        made: list[Any] = [make() if self.leads else None]
        with self._connected():
            self._dist.broadcast_object_list(made, src=0, group=self._control, device=torch.device("cpu"))
        return made[0]  # type: ignore[no-any-return]

    @contextmanager
    def together(self) -> Iterator[Sum]:
        mine = Sum()
        try:
            yield mine
        except Stopped:
            self._meet(_STOPPED)
        mine.value = self._meet(_GOES_ON, mine.value)

    def _meet(self, status: int, value: float = 0.0) -> float:
        """Wait for all ranks; the sum of their values in the order of ranks. Raises OtherFailed, Stopped."""
        mine = torch.tensor([status, value], dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(self.count)]
        with self._connected():
            self._dist.all_gather(every, mine, group=self._control)
        if any(one[0] == _STOPPED for one in every):
            raise Stopped
        return sum(one[1].item() for one in every)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if ran_out(error):  # here, not there
                raise
            found = _first_line(error)
            if any(words in found.lower() for words in _CLOSED):
                what = "another process of this run has ended without a word"
                do = "a lack of memory is the usual cause; go on with --resume"
            else:
                what, do = "the connection to another process of this run failed", "go on with --resume"
            raise OtherFailed(what, where=f"seen by rank {self.rank}", found=found, do=do) from error

    def add_gradients(self, state: State) -> None:
        with self._connected():
            self._dist.all_reduce(state.gradients, group=self._sums)

    def spread(self, state: State) -> None:
        progress = self.from_first(lambda: state.progress)
        if progress.inputs != state.progress.inputs:
            raise TrainingError("the processes of this run do not see the same model or data", where="the data's files",
                                do="leave them alone while a run begins")  # fmt: skip
        tensors = state.tensors() if self.leads else {}
        kinds = self.from_first(lambda: {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        with self._connected():
            for name, (shape, dtype) in kinds.items():
                tensor = tensors.setdefault(name, torch.empty(shape, dtype=dtype))
                self._dist.broadcast(tensor, src=0, group=self._control)
        if not self.leads:
            state.restore(tensors, progress)

    def part(self) -> None:
        self._close()

    def leave(self, error: BaseException | None) -> None:
        """Return where this rank is to speak of `error`; raises SystemExit where another one does."""
        first, code = self.rank, 1
        with contextlib.suppress(RuntimeError):  # where torchrun has gone, too, everybody speaks
            if error is not None:
                mine = f"{self.rank} {exit_code_of(error)}"
                first, code = map(int, self._store.compare_set(_END, "", mine).split())
            self._store.add(_LEFT, 1)
        self._close(failed=error is not None)
        if first != self.rank:
            raise SystemExit(code) from None
        if error is not None and not isinstance(error, OtherFailed):  # then one is gone that says nothing more
            atexit.register(self._wait_for_others)

    def _close(self, failed: bool = False) -> None:
        """Close all connections; when something has failed only the control's: NCCL might wait for those that left."""
        if self._control is None:
            return
        control, self._control, self._sums = self._control, None, None
        with contextlib.suppress(RuntimeError):
            self._dist.destroy_process_group(control if failed else None)

    def _wait_for_others(self) -> None:
        for number in numbers():
            signal.signal(number, signal.SIG_IGN)
        until = time.monotonic() + LEAVE
        with contextlib.suppress(RuntimeError):
            while self._store.add(_LEFT, 0) < self.count and time.monotonic() < until:
                time.sleep(0.05)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _join(asked: str) -> Joined:
    """Raises ConfigError where the others are not met: variables of an earlier launch, a port that is none, nobody."""
    try:
        return Joined(asked)
    except (ValueError, RuntimeError, OSError) as error:  # torch.distributed's are RuntimeErrors
        if ran_out(error):
            raise
        raise ConfigError("the processes of this run can't find each other", where="torchrun", found=_first_line(error),
                          do="start it with torchrun, or unset RANK and WORLD_SIZE") from error  # fmt: skip


@contextmanager
def joined(asked: str) -> Iterator[Ranks]:
    """This process among those that `torchrun` started on this machine; alone where it started none.

    `asked`: the run's device. Of the errors that leave the block on the ranks, the first does so here; on the other
    ranks it becomes a SystemExit with the same exit code. Raises ConfigError for what can't be.
    """
    if not all(os.environ.get(name) for name in _STARTED) or os.environ["WORLD_SIZE"] == "1":
        yield Ranks()
        return
    here, everywhere = os.environ["LOCAL_WORLD_SIZE"], os.environ["WORLD_SIZE"]
    if here != everywhere:
        raise ConfigError("a run on several machines is not supported", where="torchrun",
                          found=f"{here} of {everywhere} processes are here",
                          do="start all of them on one machine: torchrun --nproc-per-node N")  # fmt: skip
    if not torch.distributed.is_available():
        raise ConfigError("this torch can't train in several processes", where="torchrun",
                          do="install another build of torch, or start the run without torchrun")  # fmt: skip
    ranks = _join(asked)
    try:
        yield ranks
    except BaseException as error:
        ranks.leave(error)
        raise
    ranks.leave(None)
