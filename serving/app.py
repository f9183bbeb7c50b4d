"""The HTTP interface (docs/serve.md): what the page uses, and anybody else may."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field, ValidationError

from inference.files import hidden_beside
from inference.video.names import real_path
from serving.guard import App, Guard
from serving.limits import MOST_BYTES, kind_of
from serving.orders import ENDED, METHODS, MOST_PROMPT_LETTERS, Input, Video, VideoOrder
from serving.studio import NoModelsError, QueueFullError, Studio

PAGE = Path(__file__).with_name("page")
# How often a stream that has nothing to say says so, which is how a broken connection is noticed.
HEARTBEAT_SECONDS = 15.0
PIECE = 2**18
UPLOAD = "input_reference"

Id = Annotated[str, InPath(pattern=r"^[0-9a-f-]{1,40}$")]


class NextPrompt(BaseModel):
    prompt: Annotated[str, Field(min_length=1, max_length=MOST_PROMPT_LETTERS)]


def make_app(studio: Studio, hosts: tuple[str, ...] | None = None, token: str | None = None) -> App:
    """The whole server; ``hosts`` and ``token`` as in ``Guard``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await studio.start()
        yield
        await studio.close()

    app = FastAPI(title="FlowCache", summary="Videos, made chunk by chunk and shown while they are", lifespan=lifespan)
    add_errors(app)
    add_videos(app, studio)
    add_wishes(app, studio)
    add_watching(app, studio)
    add_results(app, studio)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    return Guard(app, hosts, token, MOST_BYTES)


def add_errors(app: FastAPI) -> None:
    @app.exception_handler(ValueError)
    async def bad_order(_: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"error": {"message": message_of(error)}}, 400)

    @app.exception_handler(QueueFullError)
    async def full(_: Request, error: QueueFullError) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error)}}, 429)

    @app.exception_handler(NoModelsError)
    async def broken(_: Request, error: NoModelsError) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error)}}, 503)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": {"message": error.detail}}, error.status_code)


def message_of(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    parts = (
        f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}" for each in error.errors()
    )
    return "; ".join(parts)


def find(studio: Studio, name: str) -> Video:
    """The video ``name``; 404 where there is none."""
    video = studio.videos.get(name)
    if video is None:
        raise HTTPException(404, "there is no such video")
    return video


def described(studio: Studio, video: Video) -> dict[str, Any]:
    return video.to_json_dict() | {"position": studio.position(video)}


def add_videos(app: FastAPI, studio: Studio) -> None:
    """Orders, and what became of them."""

    @app.get("/server")
    async def server() -> dict[str, Any]:
        """The model that is loaded, the methods there are, and the state of the worker."""
        runtime = studio.config.runtime
        return {
            "worker": studio.worker_state,
            "config_file": studio.config_file,
            "methods": METHODS,
            "fps": runtime.fps,
            "height": runtime.video_size_h,
            "width": runtime.video_size_w,
            "num_steps": runtime.num_steps,
            "seed": runtime.seed,
        }

    @app.post("/videos", status_code=201, openapi_extra={"requestBody": request_body()})
    async def create(request: Request) -> dict[str, Any]:
        """Queue a video: the order as JSON, or as a form with an image or clip in ``input_reference``."""
        fields, upload, given = await read_order(request)
        return described(studio, studio.submit(VideoOrder.model_validate(fields), upload, given))

    @app.post("/videos/{name}/again", status_code=201)
    async def again(name: Id, changes: dict[str, Any]) -> dict[str, Any]:
        """The same video, noise and input included, with other settings: ``{"method": "none"}`` is the uncached one."""
        return described(studio, studio.again(find(studio, name), changes))

    @app.get("/videos")
    async def listing() -> dict[str, Any]:
        """All videos, the newest first."""
        return {"object": "list", "data": [described(studio, video) for video in reversed(studio.videos.values())]}

    @app.get("/videos/{name}")
    async def state(name: Id) -> dict[str, Any]:
        """How far a video is, and what it has cost."""
        return described(studio, find(studio, name))


def add_wishes(app: FastAPI, studio: Studio) -> None:
    """What viewers want of a video."""

    @app.post("/videos/{name}/prompt", status_code=202)
    async def next_prompt(name: Id, wish: NextPrompt) -> dict[str, Any]:
        """Another prompt, from the next chunk that enters on."""
        studio.set_prompt(find(studio, name), wish.prompt)
        return described(studio, find(studio, name))

    @app.post("/videos/{name}/stop", status_code=202)
    async def stop(name: Id) -> dict[str, Any]:
        """End it; the chunks under way are finished and what is there is kept."""
        studio.stop(find(studio, name))
        return described(studio, find(studio, name))

    @app.delete("/videos/{name}")
    async def delete(name: Id) -> dict[str, Any]:
        """Remove it with its files."""
        studio.delete(find(studio, name))
        return {"id": name, "object": "video.deleted", "deleted": True}


def add_watching(app: FastAPI, studio: Studio) -> None:
    """A video while it is made."""

    @app.get("/videos/{name}/events")
    async def events(request: Request, name: Id) -> StreamingResponse:
        """Server-sent events: every step, chunk and change, from the first or from ``Last-Event-ID`` on."""
        last = request.headers.get("last-event-id", "")
        first = int(last) + 1 if last.isdigit() else 0
        return StreamingResponse(event_lines(studio, find(studio, name), first), media_type="text/event-stream")

    @app.get("/videos/{name}/stream")
    async def stream(name: Id) -> Response:
        """The video while it is made: fragmented mp4, one fragment a chunk."""
        video = find(studio, name)
        if video.status in ENDED and video.path.is_file():
            return FileResponse(video.path, media_type="video/mp4")
        return StreamingResponse(
            fragments(studio, video), media_type="video/mp4", headers={"cache-control": "no-store"}
        )


def add_results(app: FastAPI, studio: Studio) -> None:
    """The files of videos that are done."""

    def file_of(name: str, ending: str) -> Path:
        video = studio.videos.get(name)
        path = None if video is None else video.path.with_suffix(ending)
        if path is None or not path.is_file():
            raise HTTPException(404, "there is no such file, or not yet")
        return path

    @app.get("/videos/{name}/content")
    async def content(name: Id) -> FileResponse:
        """The finished video, a plain mp4."""
        return FileResponse(file_of(name, ".mp4"), media_type="video/mp4", filename=f"{name}.mp4")

    @app.get("/videos/{name}/sidecar")
    async def sidecar(name: Id) -> FileResponse:
        """Everything needed to judge and repeat the run."""
        return FileResponse(file_of(name, ".json"), media_type="application/json")

    @app.get("/videos/{name}/reuse_map")
    async def reuse_map(name: Id) -> FileResponse:
        """Which chunk was computed at which step, as a picture."""
        return FileResponse(file_of(name, ".reuse.png"), media_type="image/png")


async def read_order(request: Request) -> tuple[dict[str, Any], bytes | None, Input | None]:
    """The fields of an order, its upload, and what that is."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        try:
            fields = await request.json()
        except (ValueError, RecursionError) as error:
            raise ValueError("the order is neither JSON nor a form") from error
        if not isinstance(fields, dict):
            raise ValueError("an order is a JSON object")
        return fields, None, None
    async with request.form(max_files=1, max_fields=20) as form:
        # Words of a form are texts; an empty one says nothing, and "endless" has no seconds.
        texts = {name: value for name, value in form.items() if isinstance(value, str) and value != ""}
        fields = {name: None if (name, value) == ("seconds", "endless") else value for name, value in texts.items()}
        file = form.get(UPLOAD)
        if file is None or isinstance(file, str):
            return fields, None, None
        upload = await file.read()
    kind = kind_of(upload[:16])
    if kind == "image":
        return fields, upload, "image"
    if kind == "clip":
        return fields, upload, "clip"
    raise ValueError(f"{UPLOAD} is neither a picture (PNG, JPEG, WebP, GIF) nor a clip (MP4, MOV, WebM, AVI)")


def request_body() -> dict[str, Any]:
    """For the documentation: an order comes in two forms."""
    schema = VideoOrder.model_json_schema()
    form = {**schema, "properties": {**schema["properties"], UPLOAD: {"type": "string", "format": "binary"}}}
    return {"content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}}


async def event_lines(studio: Studio, video: Video, first: int) -> AsyncIterator[str]:
    """Events from number ``first`` on as a browser's EventSource reads them, until the video has ended; those that are
    no longer kept are left out.
    """
    while True:
        first = max(first, video.dropped)
        if first < video.dropped + len(video.events):
            event = video.events[first - video.dropped]
            yield f"id: {first}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
            first += 1
        elif video.status in ENDED or video.id not in studio.videos:
            return
        elif not await studio.wait_for_change(video, HEARTBEAT_SECONDS):
            yield ": still here\n\n"


async def fragments(studio: Studio, video: Video) -> AsyncIterator[bytes]:
    """The bytes of the file that grows, until the video has ended."""
    growing = hidden_beside(real_path(video.path), "part.mp4")
    file: IO[bytes] | None = None
    try:
        while True:
            # Asked before reading: what comes between the two is read the next time.
            ended = video.status in ENDED or video.id not in studio.videos
            if file is None:
                file = await asyncio.to_thread(open_first, growing, video.path)
            piece = b"" if file is None else await asyncio.to_thread(file.read, PIECE)
            if piece:
                yield piece
            elif ended:
                return
            else:
                await studio.wait_for_change(video, 1.0)
    finally:
        if file is not None:
            file.close()


def open_first(*paths: Path) -> IO[bytes] | None:
    """The first of them that is there and has something in it."""
    for path in paths:
        try:
            file = path.open("rb")
        except OSError:
            continue
        if path.stat().st_size:
            return file
        file.close()
    return None
