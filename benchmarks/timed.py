"""Processes that are timed: a command whose lines get the second at which they came, and the paced Keras loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from vgg16_xray.learn.weights import PACKAGED
from vgg16_xray.rundir import CACHE_VARIABLE


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that a command said."""

    text: str
    #: Since the command began.
    seconds: float
    #: What the processor had worked for it by then, summed over the cores.
    core_seconds: float


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A command that has finished."""

    lines: Sequence[Line]
    seconds: float
    core_seconds: float
    #: Most resident memory that it held, MB.
    peak_mb: float


def timed(command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> Timed:
    """Run a command and read what it says, errors and progress too, line by line.

    Raises:
        SystemExit: It failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | (environment or {}),
    )
    watched = psutil.Process(process.pid)
    lines = []
    assert process.stdout
    for text in process.stdout:
        spent = watched.cpu_times()
        lines.append(
            Line(text=text.rstrip(), seconds=time.perf_counter() - started, core_seconds=spent.user + spent.system)
        )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        said = "\n".join(line.text for line in lines[-5:])
        raise SystemExit(f"{' '.join(map(str, command))}: ended with {process.returncode}\n{said}")
    return Timed(
        lines=lines,
        seconds=seconds,
        core_seconds=usage.ru_utime + usage.ru_stime,
        # The kernel counts kilobytes, and bytes on a Mac.
        peak_mb=usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2),
    )


def vgg16_xray(*arguments: str | Path, cache: Path) -> Timed:
    """Run a command of ours, with a cache of its own."""
    return timed([sys.executable, "-m", "vgg16_xray", *arguments], environment={CACHE_VARIABLE: str(cache)})


class Keras:
    """The notebook's loop in its own virtual environment; an epoch runs when it is asked for, and not before.

    Args:
        python: The interpreter that has TensorFlow.
        films: A folder with ``train`` and ``val``.
        epochs: How many will be asked for.
    """

    def __init__(self, python: Path, films: Path, *, epochs: int) -> None:
        if not python.exists():
            raise SystemExit(f"{python}: must be a Python with TensorFlow, found none; 'make bench' makes one")
        script = Path(__file__).with_name("keras_loop.py")
        self._command = [*map(str, (python, script, films)), "--epochs", str(epochs), "--paced"]

    def __enter__(self) -> Callable[[], dict[str, Any]]:
        """Start it, wait until it stands before its first epoch, and return what runs one."""
        with resources.as_file(resources.files("vgg16_xray.learn") / PACKAGED) as weights:
            self._process = subprocess.Popen(
                [*self._command, "--weights", str(weights)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""},
            )
            self._await("ready")
        return self._epoch

    def _epoch(self) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._await("epoch")

    def _await(self, what: str) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{") and what in (said := json.loads(line)):
                return dict(said)
        raise SystemExit(f"{' '.join(self._command)}: ended with {self._process.wait()}; run it by hand")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait for its end, or end it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        if kind:
            self._process.terminate()
        self._process.stdout.close()
        self._process.wait()
