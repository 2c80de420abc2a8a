"""Models, health and the other small routes."""

from __future__ import annotations

import time

from conformance.case import Group
from conformance.checks import check, equal, has_keys
from conformance.client import Api

group = Group("models")


@group.case()
async def list_is_a_list(api: Api) -> None:
    body = (await api.get("/v1/models")).ok()
    equal(body["object"], "list", "object")
    check(isinstance(body["data"], list) and body["data"], "data must have at least one model")


_CARD = {"id": str, "object": str, "created": int, "owned_by": str, "root": str, "max_model_len": int}


@group.each({name: (name, kind) for name, kind in _CARD.items()})
async def a_card_has(api: Api, field: tuple[str, type]) -> None:
    name, kind = field
    for card in (await api.get("/v1/models")).ok()["data"]:
        has_keys(card, [name], "a card")
        check(isinstance(card[name], kind), f"{name} is {card[name]!r}")


@group.case()
async def cards_are_models(api: Api) -> None:
    for card in (await api.get("/v1/models")).ok()["data"]:
        equal(card["object"], "model", "object of a card")
        check(card["created"] <= time.time() + 60, "created is in the future")


@group.case()
async def one_model_by_name(api: Api) -> None:
    card = (await api.get(f"/v1/models/{api.facts.model}")).ok()
    equal(card["id"], api.facts.model, "id")
    listed = {card["id"]: card for card in (await api.get("/v1/models")).ok()["data"]}
    for name in ("object", "owned_by", "root", "max_model_len"):
        equal(card[name], listed[api.facts.model][name], name)


@group.case()
async def an_unknown_model_is_404(api: Api) -> None:
    error = await api.refused(await api.get("/v1/models/no-such-model"), 404)
    equal(error["param"], "model", "param")


@group.each({"health": "/health", "ping": "/ping"})
async def is_healthy(api: Api, path: str) -> None:
    equal((await api.get(path)).status, 200, "status")


@group.case()
async def ping_may_be_posted(api: Api) -> None:
    equal((await api.post("/ping")).status, 200, "status")


@group.case()
async def version_is_returned(api: Api) -> None:
    version = (await api.get("/version")).ok()["version"]
    check(isinstance(version, str) and version, f"version is {version!r}")


@group.case()
async def load_is_a_number(api: Api) -> None:
    load = (await api.get("/load")).ok()["server_load"]
    check(isinstance(load, int) and load >= 0, f"server_load is {load!r}")


@group.case()
async def the_api_describes_itself(api: Api) -> None:
    document = (await api.get("/openapi.json")).ok()
    check(str(document["openapi"]).startswith("3."), f"openapi is {document['openapi']!r}")
    check("/v1/models" in document["paths"], "the document lacks /v1/models")


@group.case()
async def docs_are_a_page(api: Api) -> None:
    answer = await api.get("/docs")
    equal(answer.status, 200, "status")
    check("html" in answer.headers["content-type"], f"content-type {answer.headers['content-type']}")
