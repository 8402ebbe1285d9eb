"""The process, or the processes: sockets, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import select
import signal
import socket
import threading
import time
from multiprocessing.process import BaseProcess
from tempfile import TemporaryDirectory

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.errors import UserError
from vgg16_xray.serve.app import make_app
from vgg16_xray.serve.guard import Guard
from vgg16_xray.serve.log import configure, log
from vgg16_xray.serve.metrics import SHARED_VARIABLE
from vgg16_xray.serve.settings import Settings

#: So long after the last answer connections are closed, seconds: who was told that the server leaves has gone by then.
SETTLED = 0.25
#: A process that ends sooner than this after its start, seconds, would end again.
TOO_SOON = 5.0
BACKLOG = 2048


class _Server(uvicorn.Server):
    """Goes on after SIGTERM until all that was accepted is answered, turning away what comes new, and then stops.

    uvicorn alone closes idle connections at once, and with them a request that is under way.
    """

    def __init__(self, config: uvicorn.Config, guard: Guard, grace: float, bound: socket.socket) -> None:
        super().__init__(config)
        self._guard, self._grace, self._bound = guard, grace, bound

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let clients in, then say so."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        log("serving", address=f"http://{host}:{port}", process=os.getpid())

    async def main_loop(self) -> None:
        """Serve; then drain."""
        await super().main_loop()
        self._guard.leaving = True
        log("leaving", open=self._guard.open)
        ends = time.monotonic() + self._grace
        while self._guard.open and time.monotonic() < ends and not self.force_exit:
            await asyncio.sleep(0.02)
        # Who stands at the door when it closes is cut off. So nobody new may stand there: who knocks is not heard,
        # knocks again a second later, and finds no server. Who stood there is let in and told 503.
        self._bound.listen(0)
        ends = time.monotonic() + SETTLED
        while time.monotonic() < ends or (time.monotonic() < 2 * SETTLED + ends and _somebody_waits(self._bound)):
            await asyncio.sleep(0.001)
        for server in self.servers:
            server.close()
        await asyncio.sleep(SETTLED)


def _somebody_waits(bound: socket.socket) -> bool:
    return bool(select.select([bound], [], [], 0)[0])


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted by then is answered.

    Raises:
        UserError: The bundle cannot be read, or the port is taken.
    """
    bound = _bind(settings)
    with bound:
        if settings.workers == 1:
            _serve(settings, bound)
            return
        with TemporaryDirectory(prefix="vgg16-xray-metrics-") as folder:
            os.environ[SHARED_VARIABLE] = folder
            _supervise(settings, bound)


def _bind(settings: Settings) -> socket.socket:
    """Take the port, and let nobody in yet: there is no model."""
    bound = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.set_inheritable(True)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise UserError(
            f"--host, --port: must be free, found {settings.host}:{settings.port} ({error.strerror})"
        ) from error
    return bound


def _serve(settings: Settings, bound: socket.socket) -> None:
    """One process: model, application, event loop."""
    configure()
    threads = max(1, (os.cpu_count() or 1) // settings.workers)
    classifier = Classifier.load(settings.model, precision=settings.precision, threads=threads)
    guard = make_app(settings, classifier)
    config = uvicorn.Config(
        guard,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here looks at who asks
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.grace) + 1,
    )
    # uvicorn raises the signal that stopped it again when all is done, as if it had not been obeyed.
    signal.signal(signal.SIGTERM, lambda *_: None)
    _Server(config, guard, settings.grace, bound).run(sockets=[bound])


def _supervise(settings: Settings, bound: socket.socket) -> None:
    """Several processes on one port; one that dies is replaced, all are told to stop together."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    spawn = multiprocessing.get_context("spawn")

    def start() -> tuple[BaseProcess, float]:
        process = spawn.Process(target=_serve, args=(settings, bound))
        process.start()
        return process, time.monotonic()

    configure()
    processes = [start() for _ in range(settings.workers)]
    try:
        while not stop.wait(0.2):
            for i, (process, since) in enumerate(processes):
                if process.is_alive():
                    continue
                if time.monotonic() - since < TOO_SOON:
                    raise UserError(
                        f"--workers: a process ended with {process.exitcode} as it started; its log knows why"
                    )
                log("replaced", process=process.pid, code=process.exitcode)
                mark_process_dead(process.pid)
                processes[i] = start()
    finally:
        for process, _ in processes:
            process.terminate()
        for process, _ in processes:
            process.join()
