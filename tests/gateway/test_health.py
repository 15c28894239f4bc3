"""What operators and clients see from outside: health, readiness, counters, documents, models."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import Overloaded
from tests.gateway.conftest import MODEL, Live, error_of, in_one_loop


@in_one_loop
async def test_ready_names_its_parts(shared: Live):
    """Every part that requests need, by name."""
    response = await shared.client.get("/health/ready")

    assert response.status_code == 200
    assert response.json() == {"status": "ok", "parts": {"database": "ok", "pictures": "ok", "jobs": "ok"}}


async def test_not_ready_without_the_database_but_alive(live: Live, monkeypatch: pytest.MonkeyPatch):
    """A balancer stops sending; nobody restarts the process."""

    async def fail(*_: object) -> None:
        raise Overloaded("The gateway's database is not ready.", detail="password=secret")

    monkeypatch.setattr(live.parts.db, "read", fail)

    ready, alive = await live.client.get("/health/ready"), await live.client.get("/health/live")

    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert "secret" not in ready.text
    assert alive.status_code == 200


async def test_closed_door_is_not_ready_and_takes_no_work(live: Live):
    """From SIGTERM on new work is 503 that may be repeated elsewhere, and what is known can still be asked for."""
    live.parts.jobs.close_door()

    refused = await live.edit()

    assert error_of(refused, 503)["code"] == "shutting_down"
    assert refused.headers["retry-after"] == "2"
    assert (await live.client.get("/health/ready")).status_code == 503
    assert (await live.client.get("/v1/models")).status_code == 200


@in_one_loop
async def test_counters_tell_of_requests_attempts_and_pictures(shared: Live):
    """By route, model, provider and outcome."""
    await shared.edit(output_format="webp")
    shared.backend.fails("broken")
    await shared.edit()
    await shared.edit(size="12by12")

    counted = await _counted(shared)

    assert counted["gateway_requests_total", "/v1/images/edits", "200"] >= 1
    assert counted["gateway_requests_total", "/v1/images/edits", "400"] >= 1
    assert counted["gateway_attempts_total", MODEL, "ok"] >= 1
    assert counted["gateway_attempts_total", MODEL, "transient"] >= 1
    assert counted["gateway_images_delivered_total", MODEL, "webp"] >= 1
    assert counted["gateway_jobs_in_flight",] == 0


async def _counted(live: Live) -> dict[tuple[str, ...], float]:
    page = (await live.client.get("/metrics")).text
    kept = ("route", "model", "status", "outcome", "format")
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {(sample.name, *(sample.labels[label] for label in kept if label in sample.labels)): sample.value for sample in samples}


@in_one_loop
async def test_documents_describe_the_routes(shared: Live):
    """OpenAPI has every route and the bearer scheme; the page for people refers to it."""
    document = (await shared.client.get("/openapi.json")).json()
    page = await shared.client.get("/docs")

    assert {"/v1/images/edits", "/v1/models", "/v1/models/{model_id}", "/health/live"} <= set(document["paths"])
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert page.headers["content-type"].startswith("text/html")


@in_one_loop
async def test_models_are_listed_and_found(shared: Live):
    """In OpenAI's shape; an id with a slash may come as it is or encoded; an unknown one is 404."""
    listed = (await shared.client.get("/v1/models")).json()
    found = [(await shared.client.get(f"/v1/models/{name}")).json()["id"] for name in (MODEL, f"local/{MODEL}", f"local%2F{MODEL}")]

    assert MODEL in [model["id"] for model in listed["data"]]
    assert found == [MODEL, f"local/{MODEL}", f"local/{MODEL}"]
    assert error_of(await shared.client.get("/v1/models/nothing/like/it"), 404)["param"] == "model"
