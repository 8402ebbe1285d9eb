"""The doors: one for files, one for clients of the Open Inference Protocol, the page, counts and documentation."""

from __future__ import annotations

import asyncio
import zlib
from asyncio import to_thread
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.cors import CORSMiddleware

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.bundle.classify import ERROR, Classifier, Prediction
from vgg16_xray.errors import UnreadableFilm
from vgg16_xray.serve import protocol
from vgg16_xray.serve.errors import FAILED, Refusal
from vgg16_xray.serve.files import Files
from vgg16_xray.serve.guard import Guard
from vgg16_xray.serve.metrics import Metrics
from vgg16_xray.serve.page import MODEL, PAGE, model_files
from vgg16_xray.serve.service import Answered, Service
from vgg16_xray.serve.settings import Settings

#: The model's name and version for clients of the Open Inference Protocol.
NAME, VERSION = "vgg16-xray", "1"
#: The field of a form that holds films.
FIELD = "films"
T = TypeVar("T")

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}
_JSON = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}
#: A body is taken apart in pieces of so many bytes, between which other requests have their turn.
PIECE = 65536
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The form or the tensor is malformed; the line names what is wrong."},
    401: {"description": "The bearer token is missing or wrong."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body, or what it holds, is too large: bytes, films, pixels."},
    415: {"description": "The content has another type or encoding."},
    422: {"description": "The films are unusable; the line says why."},
    500: {"description": "The server failed; its log knows where."},
    503: {"description": "The house is full; Retry-After says when to come back."},
}


def make_app(settings: Settings, classifier: Classifier) -> Guard:
    """The ASGI application of one process.

    Args:
        settings: What it may do.
        classifier: The model.
    """
    metrics = Metrics()
    service = Service(classifier, settings=settings, metrics=metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="vgg16-xray",
        version=__version__,
        description=f"A chest radiograph, classified. {RESEARCH_USE_ONLY}",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", protocol.HEADER_LENGTH],
            expose_headers=["X-Request-ID", protocol.HEADER_LENGTH],
        )
    _add_films(app, settings, service)
    guard = Guard(app, settings=settings, metrics=metrics)
    _add_protocol(app, settings, service, guard)

    @app.get("/metrics", tags=["server"], summary="Counts for Prometheus", response_class=Response)
    def counts() -> Response:
        return Response(metrics.as_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _add_page(app, settings, classifier)
    return guard


def _add_films(app: FastAPI, settings: Settings, service: Service) -> None:
    @app.post(
        "/v1/predict", tags=["films"], summary="Answer for one film or many", openapi_extra=_FORM,
        responses=_REFUSALS,
    )  # fmt: skip
    async def predict(
        request: Request, explain: Annotated[bool, Query(description="Add each film's heat map (Grad-CAM).")] = False
    ) -> Response:
        """Send files in the form's field ``films``: PNG, JPEG, TIFF, BMP, WebP or DICOM.

        The order of the answers is the order of the files. A file that cannot be read is a row with ``answer``
        ``error`` and the reason; where that is all of them, the status is 422.
        """
        body = await _body(request, settings)
        files = await _files(request, body, most=settings.max_films)
        request.state.films = len(files)
        if (pixels := await service.pixels_in([data for _, data in files])) > settings.max_request_pixels:
            most = f"{settings.max_request_pixels:,}"
            raise Refusal(413, f"form: must hold films of at most {most} pixels in all, found {pixels:,}")
        turns = service.turns()
        work = [service.answer_file(data, name, turns, explain=explain) for name, data in files]
        answers = await _in_time(work, settings)
        if all(isinstance(answer, UnreadableFilm) for answer in answers):
            raise Refusal(422, str(answers[0]))
        content = {
            "research_use_only": RESEARCH_USE_ONLY,
            "model": NAME,
            "labels": list(service.classifier.labels),
            "predictions": [_row(name, answer) for (name, _), answer in zip(files, answers, strict=True)],
        }
        return JSONResponse(content)


def _row(name: str, answer: Answered | UnreadableFilm) -> dict[str, Any]:
    if isinstance(answer, UnreadableFilm):
        return Prediction(path=name, answer=ERROR, reason=str(answer).removeprefix(f"{name}: ")).as_dict()
    heat = answer.prediction.heat
    return answer.prediction.as_dict() | ({} if heat is None else {"heat": heat.tolist()})


def _add_protocol(app: FastAPI, settings: Settings, service: Service, guard: Guard) -> None:
    tags: Any = {"tags": ["Open Inference Protocol, version 2"]}
    labels = len(service.classifier.labels)
    shapes = {"probabilities": [-1, labels], "logits": [-1, labels], "embedding": [-1, -1], "feature_map": [-1] * 4}

    @app.get("/v2", summary="The server", **tags)
    def server() -> dict[str, Any]:
        return {"name": NAME, "version": __version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live", summary="Whether the process runs", **tags)
    def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether it takes films", **tags)
    def ready() -> dict[str, bool]:
        if guard.leaving:
            raise Refusal(503, "the server is about to stop", retry_after=5)
        return {"ready": True}

    async def model_ready(request: Request, name: str) -> dict[str, Any]:
        _known(request, name)
        return {"name": NAME, **ready()}

    async def model(request: Request, name: str) -> dict[str, Any]:
        _known(request, name)
        return protocol.metadata(NAME, VERSION, shapes)

    async def infer(request: Request, name: str) -> Response:
        """Decoded films in one tensor ``pixels``, UINT8 [films, height, width], as JSON or as raw bytes."""
        _known(request, name)
        body, headers = await _body(request, settings), request.headers
        body = await to_thread(_inflated, body, headers.get("content-encoding"), settings.max_bytes)
        asked = await to_thread(protocol.read, body, headers.get(protocol.HEADER_LENGTH))
        films, (height, width) = len(asked.pixels), asked.pixels.shape[1:]
        if films > settings.max_films or height * width > settings.max_pixels:
            most = f"{settings.max_films} films of {settings.max_pixels:,} pixels"
            raise Refusal(413, f"{protocol.PIXELS}: must have at most {most}, found {films} of {height} x {width}")
        if asked.pixels.size > settings.max_request_pixels:
            most = f"{settings.max_request_pixels:,}"
            raise Refusal(
                413, f"{protocol.PIXELS}: must have at most {most} pixels in all, found {asked.pixels.size:,}"
            )
        request.state.films = films
        with_map = "feature_map" in asked.outputs
        turns = service.turns()
        work = [
            service.answer_film(film, f"{protocol.PIXELS}, film {number}", turns, with_map=with_map)
            for number, film in enumerate(asked.pixels, 1)
        ]
        try:
            answers = await _in_time(work, settings)
        except UnreadableFilm as error:
            raise Refusal(422, str(error)) from error
        columns = _columns(answers, asked.outputs)
        content, header_length = await to_thread(protocol.write, NAME, VERSION, asked, columns)
        if header_length is None:
            return Response(content, media_type="application/json")
        told = {protocol.HEADER_LENGTH: header_length}
        return Response(content, media_type="application/octet-stream", headers=told)

    for at, shown in (("/v2/models/{name}", True), ("/v2/models/{name}/versions/{version}", False)):
        app.get(at, summary="What the model takes and gives", include_in_schema=shown, **tags)(model)
        app.get(f"{at}/ready", summary="Whether the model takes films", include_in_schema=shown, **tags)(model_ready)
        app.post(
            f"{at}/infer", summary="Infer from decoded films", include_in_schema=shown, openapi_extra=_JSON,
            responses=_REFUSALS, response_class=Response, **tags,
        )(infer)  # fmt: skip


def _known(request: Request, name: str) -> None:
    if (name, request.path_params.get("version", VERSION)) != (NAME, VERSION):
        raise Refusal(404, f"model: must be '{NAME}', version {VERSION}")


def _columns(answers: Sequence[Answered], wanted: Any) -> dict[str, Any]:
    """Output -> its values for all films."""
    return {
        name: [getattr(answer.prediction, name) for answer in answers]
        if protocol.OUTPUTS[name] == "BYTES"
        else np.stack([getattr(answer.raw, name) for answer in answers])
        for name in wanted
    }


def _add_page(app: FastAPI, settings: Settings, classifier: Classifier) -> None:
    @app.get("/docs", include_in_schema=False)
    def documentation() -> Response:
        return FileResponse(PAGE / "docs.html")

    # Named by their content, so they never change.
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    app.mount("/assets", Files(directory=PAGE / "assets", headers=kept), name="assets")
    if not settings.page:
        return
    # Asked for anew each time, answered with 304 where nothing changed: another model may come under the same name.
    model = Files(named=model_files(classifier.bundle), headers={"Cache-Control": "no-cache"})
    app.mount(f"/{MODEL}", model, name="model")
    app.mount("/", Files(directory=PAGE, html=True), name="page")


async def _body(request: Request, settings: Settings) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(settings.seconds):
            async for chunk in request.stream():
                body += chunk
    except TimeoutError as error:
        raise Refusal(408, f"body: must arrive within {settings.seconds:g} s") from error
    return bytes(body)


def _inflated(body: bytes, encoding: str | None, most: int) -> bytes:
    if encoding in (None, "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise Refusal(415, "Content-Encoding: must be gzip or deflate")
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header
    try:
        whole = inflater.decompress(body, most)
    except zlib.error as error:
        raise Refusal(400, f"body: cannot be inflated ({error})") from error
    if inflater.unconsumed_tail or not inflater.eof:
        raise Refusal(413, f"body: must be whole and have at most {most:,} bytes when inflated")
    return whole


async def _files(request: Request, body: bytes, *, most: int) -> list[tuple[str, bytes]]:
    """Name and content of each file of the form. They are kept in memory: no film is laid on this machine's disk."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(415, f"Content-Type: must be multipart/form-data with films in the field '{FIELD}'")

    async def in_pieces() -> AsyncGenerator[bytes]:
        for start in range(0, len(body), PIECE):
            yield body[start : start + PIECE]
            await asyncio.sleep(0)

    parser = MultiPartParser(request.headers, in_pieces(), max_files=most, max_fields=16)
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        too_many = "Too many" in error.message
        raise Refusal(413 if too_many else 400, f"form: {error.message}") from error
    except (KeyError, ValueError) as error:
        raise Refusal(400, "form: must be multipart/form-data with its boundary") from error
    if unknown := sorted({name for name in form if name != FIELD}):
        raise Refusal(400, f"form: must hold films in the field '{FIELD}', found '{unknown[0][:60]}'")
    files = [value for value in form.getlist(FIELD) if isinstance(value, UploadFile)]
    if not files or len(files) != len(form.getlist(FIELD)):
        raise Refusal(400, f"form: must hold files in the field '{FIELD}', found {'text' if form else 'none'}")
    return [(file.filename or f"film {i}", await file.read()) for i, file in enumerate(files, 1)]


async def _in_time(work: Sequence[Coroutine[Any, Any, T]], settings: Settings) -> list[T]:
    """All answers, or none: what is late is taken out of the queue; one that fails is told, and ends the others."""
    try:
        async with asyncio.timeout(settings.seconds), asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except TimeoutError as error:
        raise Refusal(503, f"no answer within {settings.seconds:g} s; come back later", retry_after=5) from error
    except BaseExceptionGroup as group_of_errors:
        raise group_of_errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _told(request: Request, refusal: Refusal) -> JSONResponse:
    content = {"error": refusal.reason, "request_id": request.state.request_id}
    return JSONResponse(content, refusal.status, headers=refusal.headers)


async def _refused(request: Request, error: Refusal) -> Response:
    return _told(request, error)


async def _not_here(request: Request, error: HTTPException) -> Response:
    return _told(request, Refusal(error.status_code, str(error.detail)))


async def _malformed(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    return _told(request, Refusal(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"))


async def _failed(request: Request, _: Exception) -> Response:
    # Starlette raises the error again when this is sent, and the guard logs it.
    return _told(request, Refusal(500, FAILED))


_HANDLERS = {
    Refusal: _refused,
    HTTPException: _not_here,
    RequestValidationError: _malformed,
    Exception: _failed,
}
