"""Logs as JSON lines: what happened and how long it took, never a pixel, a file name or a path that a client wrote."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any

LOGGER = "vgg16_xray.serve"
#: Whose messages are told. Of another library's warning its place is: its words may hold what a client sent.
OWN = ("vgg16_xray", "uvicorn")


def log(event: str, *, level: int = logging.INFO, exc_info: bool = False, **facts: Any) -> None:
    """One event. What is passed must not name a patient."""
    logging.getLogger(LOGGER).log(level, event, exc_info=exc_info, extra={"facts": facts})


class JsonLines(logging.Formatter):
    """A line a record. Of an error its kind and place are told: its message may hold what a client sent."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower()}
        if record.name.split(".")[0] in OWN:
            line["event"] = record.getMessage()
        else:
            line |= {"event": "library", "logger": record.name, "from": f"{record.pathname}:{record.lineno}"}
        line |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
            line["at"] = [f"{step.filename}:{step.lineno}" for step in traceback.extract_tb(record.exc_info[2])[-4:]]
        return json.dumps(line, ensure_ascii=False)


def configure() -> None:
    """Send all records to standard error as JSON lines: this server's, uvicorn's, and warnings of other libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.captureWarnings(capture=True)
    logging.getLogger().handlers = [handler]
    for name in (LOGGER, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == LOGGER else logging.WARNING)
    # It would log addresses with what clients wrote into them.
    logging.getLogger("uvicorn.access").handlers = [logging.NullHandler()]
    logging.getLogger("uvicorn.access").propagate = False
    # It warns of forms that are malformed; who sent one is told so.
    logging.getLogger("python_multipart.multipart").disabled = True
