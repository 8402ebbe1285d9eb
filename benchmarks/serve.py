"""The real server under load, against the bare runtime in the same run; then SIGTERM in the middle of it.

    python benchmarks/serve.py [--model BUNDLE] [--clients 64] [--seconds 60] [--out FILE]

The bare runtime has its batches ready and does nothing else; it is measured before and after the server, since machines
change their minds. Clients are on the same machine and take their part of it. A shared machine gives a process more or
less of its time, so the CPU seconds that a film costs stand beside films a second. An answer is lost where a request
was sent on a connection that the server had accepted, and none came.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.films.phantom import CLASSES, draw

#: Side of a film of the COVID-19 Radiography Database, pixels.
SIDE = 299
BATCHES = (1, 8, 16)
BOUNDARY = b"limit"


def films(count: int = 16) -> list[np.ndarray]:
    return [draw(CLASSES[i % len(CLASSES)], seed=1, patient=i, size=SIDE).pixels for i in range(count)]


def bare(model: Path | None, seconds: float) -> dict[str, float]:
    """Films a second, and CPU seconds a film, of the network alone, with the batch that suits it best."""
    classifier = Classifier.load(model, threads=os.cpu_count())
    squares = [classifier.square(film) for film in films()]
    best: dict[str, float] = {"films_per_s": 0.0}
    for batch in BATCHES:
        classifier.predict_arrays(squares[:batch], feature_map=False)
        done, cpu, since = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() - since < seconds / len(BATCHES):
            classifier.predict_arrays(squares[:batch], feature_map=False)
            done += batch
        took, cpu = time.perf_counter() - since, time.process_time() - cpu
        if done / took > best["films_per_s"]:
            best = {"batch": batch, "films_per_s": done / took, "cpu_s_per_film": cpu / done}
    return best


class Server:
    """``vgg16-xray serve`` in a process of its own."""

    def __init__(self, model: Path | None) -> None:
        command = [
            sys.executable,
            "-m",
            "vgg16_xray",
            "serve",
            "--port",
            "0",
            *(["--model", str(model)] if model else []),
        ]
        self._log = Path(os.devnull).open("w")  # noqa: SIM115 (open as long as the server)
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if '"serving"' in line:
                self.port = int(json.loads(line)["address"].rsplit(":", 1)[1])
                break
        # Its log must go on being read, or it would wait for room in the pipe.
        self._reader = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=self._log)
        self._ps = psutil.Process(self.process.pid)

    def memory(self) -> float:
        """Resident, MB."""
        return float(self._ps.memory_info().rss / 1e6)

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        times = self._ps.cpu_times()
        return float(times.user + times.system)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


def requests() -> list[bytes]:
    """One film a request, ready to send."""
    made = []
    for film in films():
        file = io.BytesIO()
        Image.fromarray(film).save(file, "PNG")
        part = b'Content-Disposition: form-data; name="films"; filename="film.png"\r\n\r\n' + file.getvalue()
        body = b"--" + BOUNDARY + b"\r\n" + part + b"\r\n--" + BOUNDARY + b"--\r\n"
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\n\r\n"
        made.append(head.encode() + body)
    return made


async def client(port: int, ready: list[bytes], until: float, counts: Counter[str], latencies: list[float]) -> None:
    """Ask, wait, ask again, on one connection for as long as the server keeps it."""
    number = 0
    while time.perf_counter() < until:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            counts["not let in"] += 1
            return
        try:
            keep = True
            while keep and time.perf_counter() < until:
                since = time.perf_counter()
                writer.write(ready[number % len(ready)])
                number += 1
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
                status = head[9:12].decode()
                counts[status] += 1
                if status == "200":
                    latencies.append(time.perf_counter() - since)
                keep = b"connection: close" not in head
        except (OSError, asyncio.IncompleteReadError):
            counts["lost"] += 1
            return
        finally:
            writer.close()


async def load(server: Server, clients: int, seconds: float, *, stop_after: float | None = None) -> dict[str, Any]:
    ready, counts, latencies = requests(), Counter[str](), list[float]()
    began = time.perf_counter()
    asked = [
        asyncio.create_task(client(server.port, ready, began + seconds, counts, latencies)) for _ in range(clients)
    ]
    memory: list[float] = []
    stopped = stop_after is None
    cpu = server.cpu()
    while not all(task.done() for task in asked):
        await asyncio.sleep(0.25)
        if not stopped and time.perf_counter() - began > stop_after:  # type: ignore[operator]
            server.process.send_signal(signal.SIGTERM)
            stopped = True
        elif stop_after is None:
            memory.append(server.memory())
    took = time.perf_counter() - began
    found: dict[str, Any] = {"clients": clients, "seconds": took, "answers": dict(counts), "lost": counts["lost"]}
    if stop_after is None:
        quarter = max(1, len(memory) // 4)
        cuts = statistics.quantiles(latencies, n=100)
        found |= {
            "films_per_s": counts["200"] / took,
            "cpu_s_per_film": (server.cpu() - cpu) / counts["200"],
            "latency_s": {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]},
            "memory_mb": {
                "second quarter": statistics.median(memory[quarter : 2 * quarter]),
                "last quarter": statistics.median(memory[-quarter:]),
            },
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a bundle; the one in the package by default")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args()

    before = bare(given.model, given.seconds / 4)
    server = Server(given.model)
    asyncio.run(load(server, given.clients, 3))
    loaded = asyncio.run(load(server, given.clients, given.seconds))
    loaded["exit"] = server.stop()
    after = bare(given.model, given.seconds / 4)
    server = Server(given.model)
    ended = asyncio.run(load(server, given.clients, given.seconds / 4, stop_after=given.seconds / 8))
    ended["exit"] = server.process.wait(timeout=120)

    bare_rate = statistics.mean([before["films_per_s"], after["films_per_s"]])
    bare_cpu = statistics.mean([before["cpu_s_per_film"], after["cpu_s_per_film"]])
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "bare_before": before,
        "bare_after": after,
        "served": loaded,
        "rate_to_bare": loaded["films_per_s"] / bare_rate,
        "bare_cpu_to_served": bare_cpu / loaded["cpu_s_per_film"],
        "sigterm": ended,
    }
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
