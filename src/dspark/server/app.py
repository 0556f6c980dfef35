"""The server's endpoints, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from dspark import __version__
from dspark.engine.async_engine import AsyncEngine
from dspark.engine.engine import Engine
from dspark.server import errors
from dspark.server.bodies import route_class
from dspark.server.completion import Completion
from dspark.server.errors import ApiError, ErrorBody
from dspark.server.limits import ApiKeys, SizeLimits
from dspark.server.monitor import Monitor
from dspark.server.page_files import INDEX, load_page
from dspark.server.schema import ChatRequest, CompletionRequest
from dspark.server.service import Service
from dspark.server.settings import Settings
from dspark.server.stream import EventStream, whole
from dspark.server.wire import ChatWire, CompletionWire, Wire
from dspark.tables.calibration import CalibrationTable

OPEN_PATHS = ("/health", "/ready", "/", "/page/")
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody},
    "5XX": {"model": ErrorBody},
}


def create_app(
    engine: Engine, settings: Settings, calibration: CalibrationTable | None = None
) -> FastAPI:
    """The whole server as an ASGI application, with its engine on a thread of its own.

    The engine starts with the application's lifespan and stops with it. `app.state.service` is
    the `Service` behind the endpoints.

    Args:
        engine: nobody else may use it.
        settings: limits and choices.
        calibration: the drafter's table, for the drift metrics.

    Raises:
        ConfigError: the settings do not fit the engine.
    """
    monitor = Monitor(engine, settings, calibration)
    outer = AsyncEngine(engine, max_waiting=settings.max_queue, on_step=monitor.on_step)
    monitor.watch(outer)
    service = Service(outer, engine.target, engine.max_len, settings, monitor)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with outer:
            yield
        service.close()

    app = FastAPI(
        title="dspark",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses=_ERRORS,
    )
    app.state.service = service
    app.router.route_class = route_class(settings.ignore_unknown)
    errors.install(app)
    _completions(app, service)
    _states(app, service)
    _page(app)
    _guards(app, settings)
    return app


def _guards(app: FastAPI, settings: Settings) -> None:
    """The last one added is the first to see a request."""
    app.add_middleware(SizeLimits, most=settings.max_body)
    if settings.api_keys:
        open_paths = (*OPEN_PATHS, "/metrics") if settings.open_metrics else OPEN_PATHS
        app.add_middleware(ApiKeys, keys=settings.api_keys, open_paths=open_paths)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )


def _completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", tags=["OpenAI"])
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await _answer(service, body, request, ChatWire)

    @app.post("/v1/completions", tags=["OpenAI"])
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue bare texts."""
        return await _answer(service, body, request, CompletionWire)

    @app.get("/v1/models", tags=["OpenAI"])
    async def models() -> dict[str, Any]:
        """The one model of this server."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}", tags=["OpenAI"])
    async def model(name: str) -> dict[str, Any]:
        """The model, by its name."""
        service.check_model(name)
        return _model(service)


async def _answer(
    service: Service, body: ChatRequest | CompletionRequest, request: Request, kind: type[Wire]
) -> Response:
    if service.stopping:
        raise errors.stopping()
    service.check_model(body.model)
    completion = await Completion.start(service, body)
    wire = kind(
        service.settings.model,
        service.octets,
        service.target.stop_ids,
        logprobs=body.alternatives is not None,
        tokens=bool(body.dspark_tokens),
    )
    if body.stream:
        return EventStream(
            completion, wire, usage=body.wants_usage, running=body.wants_running_usage
        )
    return await whole(completion, wire, request)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.model,
        "object": "model",
        "created": service.created,
        "owned_by": "dspark",
        "max_model_len": service.max_len,
    }


def _states(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"])
    async def ready() -> Response:
        """Requests will be answered; 503 where the engine has failed or is stopping."""
        if service.stopping:
            return errors.stopping().response()
        if not service.engine.healthy:
            return ApiError(503, "The engine has failed", code="engine_error").response()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.monitor.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/stats", tags=["state"])
    async def stats() -> dict[str, Any]:
        """The last five minutes, one point a second, oldest first."""
        return {"points": service.monitor.history.points()}


def _page(app: FastAPI) -> None:
    files = load_page()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _file(INDEX)

    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        return _file(name)

    def _file(name: str) -> Response:
        if name not in files:
            raise ApiError(404, "There is no such page")
        return files[name]
