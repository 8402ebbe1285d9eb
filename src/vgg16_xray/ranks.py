"""Several processes that train one model, each a rank: what they do together and what the first alone does.

A launcher that exists starts them (``torchrun``, ``accelerate launch``) and says in the environment which is which;
torch.distributed carries what they tell each other. Started without one, a process is alone and all of this is nothing.

They see one folder: the first rank writes the run, all read it, and each writes its own shards of the feature store.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from vgg16_xray.errors import UserError

if TYPE_CHECKING:
    import torch

#: What a launcher sets for each of its processes.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: How long a training step waits for another rank's gradients: one that vanished is noticed within a minute. A process
#: that died is noticed at once, by its closed connection.
STEP_TIMEOUT = timedelta(seconds=50)
#: How long one rank may work while the others wait: decoding a large dataset takes hours.
WAIT_TIMEOUT = timedelta(days=2)
#: What a shell expects of a program that was told to stop: 128 + SIGTERM.
EXIT_TERMINATED = 143
#: How the libraries below torch.distributed say that another process is gone; they have no class of their own for it.
GONE = re.compile(
    r"Dist\w*Error|gloo|nccl|c10d|connection (closed|reset|refused)|broken pipe|timed? ?out|process group", re.I
)

_T = TypeVar("_T")


class Terminated(BaseException):
    """The launcher asked this process to stop."""


class RankLost(UserError):
    """Another rank is gone, or does not answer."""


def launched() -> int:
    """How many ranks a launcher started; 1 where none did."""
    if not all(os.environ.get(name, "").strip() for name in VARIABLES):
        return 1
    try:
        return int(os.environ["WORLD_SIZE"])
    except ValueError as error:
        raise UserError(f"WORLD_SIZE: must be a number of processes, found '{os.environ['WORLD_SIZE']}'") from error


@dataclass
class _Group:
    """The ranks that were joined."""

    rank: int
    size: int
    store: Any
    #: For what one rank may make the others wait for.
    waiting: Any
    #: For gradients: nccl between GPUs, gloo between processors.
    stepping: Any
    calls: Iterator[int]


_group: _Group | None = None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other ranks for as long as the block lasts; the first alone prints. Alone: nothing.

    Raises:
        UserError: They do not find each other, or one is gone.
    """
    global _group  # noqa: PLW0603  # one process is one rank
    if launched() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, _terminate)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun's default, whatever the machine has
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local))
    try:
        store, rank, size = next(dist.rendezvous("env://"))
        dist.init_process_group(
            "gloo", store=dist.PrefixStore("ranks", store), rank=rank, world_size=size, timeout=WAIT_TIMEOUT
        )
        backend = "gloo"
        if torch.cuda.is_available() and dist.is_nccl_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        stepping = dist.new_group(backend=backend, timeout=STEP_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"MASTER_ADDR, MASTER_PORT: the processes must find each other, found {error}") from error
    _group = _Group(rank, size, dist.PrefixStore("words", store), dist.group.WORLD, stepping, itertools.count())
    try:
        with contextlib.ExitStack() as quiet:
            if rank:
                nothing = quiet.enter_context(open(os.devnull, "w"))  # noqa: PTH123
                quiet.enter_context(contextlib.redirect_stdout(nothing))
                quiet.enter_context(contextlib.redirect_stderr(nothing))
            with noticing():
                yield
                wait()
        dist.destroy_process_group()
    finally:
        # The group stays known after an error: who may say the one line is asked of it.
        if sys.exc_info()[0] is None:
            _group = None


@contextlib.contextmanager
def noticing() -> Iterator[None]:
    """Turn what torch.distributed raises when another rank is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        if _group is None or not GONE.search(f"{type(error).__name__} {error}"):
            raise
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RankLost(
            f"one of the {_group.size} processes of this run is gone ({said})",
            hint="what was saved is kept, and the same command goes on from there, with any number of processes",
        ) from error


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what is under way may tidy up
    raise Terminated


def say_once(line: str) -> None:
    """Print a line on standard error unless another rank has said why all stop; alone: always."""
    if _group is not None:
        with contextlib.suppress(Exception):  # the store may have gone with its host: better twice than never
            if _group.store.add("said", 1) > 1:
                return
    print(line, file=sys.stderr, flush=True)


def size() -> int:
    """How many ranks there are."""
    return 1 if _group is None else _group.size


def rank() -> int:
    """Which of them this process is, from 0."""
    return 0 if _group is None else _group.rank


def first() -> bool:
    """Whether this process writes the run."""
    return rank() == 0


def wait() -> None:
    """Wait until all are here."""
    gather(None)


def agree(value: _T) -> _T:
    """What the first rank has here, for all: nobody decides for himself what a file that changes says."""
    if _group is None:
        return value
    import torch.distributed as dist

    held = [value]
    dist.broadcast_object_list(held, src=0, group=_group.waiting)
    return held[0]


def gather(value: _T) -> list[_T]:
    """What each rank has here, in their order, for all."""
    if _group is None:
        return [value]
    import torch.distributed as dist

    held: list[Any] = [None] * _group.size
    dist.all_gather_object(held, value, group=_group.waiting)
    return held


def by_first(work: Callable[[], _T], otherwise: Callable[[], _T]) -> _T:
    """`work` by the first rank; by the others, when it has finished, `otherwise`."""
    if first():
        done = work()
        wait()
        return done
    wait()
    return otherwise()


def first_then_others(work: Callable[[], _T]) -> _T:
    """The same by all, the first rank first: the others find done what it wrote."""
    return by_first(work, work)


def mine_of(items: Sequence[_T]) -> Sequence[_T]:
    """This rank's share of what is to be done: every so manieth."""
    return items[rank() :: size()]


def all_of(done: Sequence[_T]) -> list[_T]:
    """What each rank made of :func:`mine_of`, for all, in the order of the whole."""
    parts = gather(done)
    return [parts[number % size()][number // size()] for number in range(sum(map(len, parts)))]


def turns(count: int) -> Iterator[int]:
    """Numbers below `count`, each given to one rank, the next to whoever asks first: machines need not be alike."""
    if _group is None:
        yield from range(count)
        return
    key = f"turn-{next(_group.calls)}"
    while (turn := _group.store.add(key, 1) - 1) < count:
        yield turn


def part_of(films: int) -> slice:
    """This rank's part of the films of a step; parts differ by one film at most, and may be empty."""
    return slice(films * rank() // size(), films * (rank() + 1) // size())


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over the ranks, in place."""
    if _group is not None:
        import torch.distributed as dist

        dist.all_reduce(tensor, group=_group.stepping)
    return tensor


def in_step(module: torch.nn.Module) -> torch.nn.Module:
    """The module with gradients that are the mean over the ranks, and the first rank's parameters.

    For what learns now: a parameter that begins to learn later needs another call.
    """
    if _group is None:
        return module
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(module, process_group=_group.stepping)


@contextlib.contextmanager
def held_by_first(held: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """A lock that the first rank takes for all; the others go on when it has it."""
    with held if first() else contextlib.nullcontext():
        wait()
        yield
