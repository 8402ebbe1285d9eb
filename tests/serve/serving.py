"""A real server in a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Nothing that tests wait for takes so long, seconds, also where many others use the machine.
PATIENCE = 300.0


def until(found: Callable[[], bool]) -> None:
    """Wait for what must come."""
    ends = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.05)


@dataclass
class Running:
    """A server, and what it has logged so far."""

    process: subprocess.Popen[str]
    address: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def events(self, event: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [row for row in rows if row["event"] == event]


@contextmanager
def running(bundle: Path, *arguments: str, token: str | None = None) -> Iterator[Running]:
    """``vgg16-xray serve`` until the block ends."""
    environment = {**os.environ, **({"VGG16_XRAY_TOKEN": token} if token else {})}
    command = [sys.executable, "-m", "vgg16_xray", "serve", "--port", "0", "--model", str(bundle), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    server = Running(process)
    assert process.stderr is not None
    for line in process.stderr:
        server.lines.append(line)
        if '"serving"' in line:
            server.address = json.loads(line)["address"]
            break
    assert server.address, server.lines
    reader = threading.Thread(target=lambda: server.lines.extend(process.stderr or ()))
    reader.start()
    try:
        yield server
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
        reader.join()
