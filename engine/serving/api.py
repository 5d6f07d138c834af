"""The HTTP interface: /predict, /labels, /health, and its own description at /docs and /openapi.json.

Nothing a client sends becomes a path, a name of a module or a part of a command.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from engine.inference.predictor import Predictor
from engine.serving.batcher import Batcher, TooBusy
from engine.serving.docs_page import docs_page

MOST_TEXTS = 256  # a request
MOST_CHARACTERS = 20_000  # a text
MOST_LABELS = 100  # a text, or a page
LARGEST_ID = 2**31 - 1


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is blank; there is nothing to predict from")
    return text


Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS), AfterValidator(_not_blank)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]


class Question(BaseModel):
    """Texts to predict labels of."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[
        Annotated[Text, Tag("text")] | Annotated[Texts, Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list) else "text"),
    ] = Field(description=f"one text, or a list of up to {MOST_TEXTS}", examples=["open a file and append some text"])
    k: int = Field(5, ge=1, le=MOST_LABELS, description="labels a text, the most probable first")
    threshold: float = Field(0.0, ge=0, le=1, description="leave out labels that are less probable")


class FoundLabel(BaseModel):
    """A label and the probability that the text has it."""

    label: str
    id: int
    probability: float


class Found(BaseModel):
    """The labels of one text."""

    labels: list[FoundLabel]


class Answer(BaseModel):
    """One result a text, in the order of the texts."""

    results: list[Found]


class Label(BaseModel):
    """A label the model knows."""

    id: int
    name: str


class Page(BaseModel):
    """Labels in the order of their ids. next: what `after` has to be for the next page; null on the last."""

    labels: list[Label]
    next: int | None


class Health(BaseModel):
    """waiting: texts that the model has not begun with."""

    status: str
    waiting: int


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem} for code in codes}


def create_app(predictor: Predictor, needs_token: bool) -> FastAPI:
    """The application around a loaded model. needs_token: only said in the description, `Guard` asks for it."""
    batcher = Batcher(predictor.predict)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    bearer = [Security(HTTPBearer(auto_error=False))] if needs_token else []
    app = FastAPI(
        title="fanin", version="1", description="Labels of texts.", lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.post("/predict", responses=_problems(400, 401, 408, 413, 422, 503), dependencies=bearer)
    async def predict(question: Question) -> Answer:
        """The k most probable labels of each text."""
        texts = [question.text] if isinstance(question.text, str) else question.text
        try:
            rows = await asyncio.wrap_future(batcher.submit(texts, question.k))
        except TooBusy:
            raise HTTPException(503, "too many texts are waiting; ask again later", {"Retry-After": "1"}) from None
        return Answer(
            results=[
                Found(
                    labels=[
                        FoundLabel(label=p.label, id=p.label_id, probability=p.probability)
                        for p in row
                        if p.probability >= question.threshold
                    ]
                )
                for row in rows
            ]
        )

    @app.get("/labels", responses=_problems(401, 422), dependencies=bearer)
    def labels(
        prefix: Annotated[str, Query(max_length=1000, description="what their names begin with")] = "",
        after: Annotated[int, Query(ge=-1, le=LARGEST_ID, description="only ids above this one")] = -1,
        limit: Annotated[int, Query(ge=1, le=MOST_LABELS, description="labels on the page")] = 20,
    ) -> Page:
        """Labels by the beginning of their names, page by page."""
        found = predictor.find_labels(prefix, after + 1, limit + 1)
        shown = [Label(id=id, name=name) for id, name in found[:limit]]
        return Page(labels=shown, next=shown[-1].id if len(found) > limit else None)

    @app.get("/labels/{id}", responses=_problems(401, 404, 422), dependencies=bearer)
    def label(id: Annotated[int, Path(ge=0, le=LARGEST_ID)]) -> Label:
        """One label."""
        if id >= predictor.labels:
            raise HTTPException(404, f"there is no label {id}; the last one is {predictor.labels - 1}")
        return Label(id=id, name=predictor.name(id))

    @app.get("/health")
    async def health() -> Health:
        """Answers as long as the server does; needs no token."""
        return Health(status="ok", waiting=batcher.waiting)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    return app


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong and where, without what was sent: that need not be text at all."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{place}: {first['msg']}".encode(errors="replace").decode()}, 422)
