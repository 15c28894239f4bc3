"""Predictions of the Replicate stand-in: how they live, end, are paid for, told of and forgotten."""

import asyncio
import secrets
from base64 import b32encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from normalization.offer import PriceUnit
from normalization.pricing import MEGAPIXEL, price
from normalization.request import Json
from providers.simulators import pictures
from providers.simulators.kit import Fault, Kit
from providers.simulators.replicate_models import SoldModel, dropped_unknown
from providers.simulators.replicate_webhooks import Webhooks
from providers.simulators.replicate_work import OUT_OF_MEMORY, Fetch, RunFailed, make_pictures

QUEUE_S = 0.5
"""How long a prediction waits for a machine, in life."""
SETTLE_S = 0.3
"""How long the outputs are there before the prediction counts as succeeded, in life."""
TYPICAL_S = Decimal(4)
"""How long a run takes of which the catalog does not say it."""
KEPT = timedelta(hours=1)
"""For so long input, output and logs are kept after the end. Source: https://replicate.com/docs/topics/predictions/data-retention."""
INLINE_BYTES = 5_000_000
"""Inputs that are longer than this inline are what interrupts predictions, users of the API report."""

TERMINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})
EVENTS = ("start", "output", "logs", "completed")

FAILURES: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "cuda_oom": (OUT_OF_MEMORY, True),
        "nsfw": ("NSFW content detected. Try running it again, or try a different prompt.", True),
        "interrupted_pa": ("Prediction interrupted; please retry (code: PA)", False),
    }
)
"""How predictions end with these faults: the error, and whether the machine was used."""


@dataclass(slots=True)
class Output:
    """A file at the delivery host."""

    data: bytes = field(repr=False)
    mime: str
    ends_at: datetime
    faults: Mapping[str, Fault]
    cuts: int = 0
    """How often its download was cut."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A result that waits to be delivered."""

    data: bytes = field(repr=False)
    mime: str
    format: str
    pixels: int


@dataclass(slots=True)
class Prediction:
    """One, from its creation on."""

    id: str
    number: int
    """How many there were before it."""
    model: SoldModel
    given: Mapping[str, Json]
    """The input as it was sent."""
    created_at: datetime
    origin: str
    """What its addresses begin with."""
    deadline: datetime | None = None
    webhook: str | None = None
    events: frozenset[str] = frozenset(EVENTS)
    answered: bool = True
    """False if the create's answer was lost on purpose."""
    faults: Mapping[str, Fault] = field(default_factory=dict[str, Fault])
    """What goes wrong with it."""
    polls: int = 0
    """How often it was asked for."""
    status: str = "starting"
    output: Json = None
    error: str | None = None
    logs: str = ""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    predict_s: Decimal | None = None
    """Seconds of the machine, in life."""
    data_removed: bool = False
    pixels: list[int] = field(default_factory=list[int])
    """Of each picture that it made."""
    paths: list[str] = field(default_factory=list[str])
    """Of its files at the delivery host."""
    has_news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once there is an output, or the end."""
    task: asyncio.Task[None] | None = None
    alarm: asyncio.TimerHandle | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in TERMINAL

    def as_json(self) -> dict[str, Any]:
        """As the API shows it."""
        foreign = self.faults.get("foreign_urls")
        api = elsewhere(foreign) if foreign else self.origin
        facts = {
            "id": self.id,
            "model": self.model.id,
            "version": self.model.shown_version,
            "input": self.given,
            "logs": self.logs,
            "output": self.output,
            "data_removed": self.data_removed,
            "error": self.error,
            "source": "api",
            "status": self.status,
            "created_at": moment(self.created_at),
            "urls": {
                "cancel": f"{api}/v1/predictions/{self.id}/cancel",
                "get": f"{api}/v1/predictions/{self.id}",
                "web": f"https://replicate.com/p/{self.id}",
            },
        }
        if self.deadline is not None:
            facts["deadline"] = moment(self.deadline)
        if self.started_at is not None:
            facts["started_at"] = moment(self.started_at)
        if self.completed_at is not None:
            facts["completed_at"] = moment(self.completed_at)
            facts["metrics"] = {"total_time": (self.completed_at - self.created_at).total_seconds()}
            if self.predict_s is not None:
                facts["metrics"]["predict_time"] = float(self.predict_s)
        return facts

    def as_blocking_json(self) -> dict[str, Any]:
        """As a create with `Prefer: wait` shows one that has its output: not ended yet, and without metrics."""
        facts = self.as_json()
        if self.status not in ("processing", "succeeded"):
            return facts
        for later in ("completed_at", "metrics"):
            facts.pop(later, None)
        return {**facts, "status": "processing"}


class Predictions:
    """All of one account."""

    def __init__(self, kit: Kit, webhooks: Webhooks, now: Callable[[], datetime], speed: float, delivery: str | None) -> None:
        self._kit = kit
        self._webhooks = webhooks
        self._now = now
        self._speed = speed
        self._delivery = delivery
        self._all: dict[str, Prediction] = {}
        self._outputs: dict[str, Output] = {}

    def newest_first(self) -> list[Prediction]:
        """Every one, as it is now."""
        return [self._refreshed(prediction) for prediction in reversed(self._all.values())]

    def find(self, id_: str) -> Prediction | None:
        """One, as it is now."""
        prediction = self._all.get(id_)
        return self._refreshed(prediction) if prediction is not None else None

    def start(self, prediction: Prediction, fetch: Fetch) -> None:
        """Let it live."""
        self._all[prediction.id] = prediction
        prediction.task = asyncio.create_task(self._live(prediction, fetch))
        if prediction.deadline is not None:
            left_s = (prediction.deadline - self._now()).total_seconds()
            prediction.alarm = asyncio.get_running_loop().call_later(left_s, self._refreshed, prediction)

    def count(self) -> int:
        """How many there have been."""
        return len(self._all)

    def listing(self) -> list[dict[str, Any]]:
        """What came in, for `GET /_sim/jobs`: without pictures."""
        return [
            {
                "id": prediction.id,
                "endpoint": prediction.model.endpoint,
                "status": self._refreshed(prediction).status,
                "input": {name: _shortened(value) for name, value in prediction.given.items()},
                "deadline": moment(prediction.deadline) if prediction.deadline else None,
                "webhook": prediction.webhook,
                "polls": prediction.polls,
                "answered": prediction.answered,
                "faults": [str(fault) for fault in prediction.faults.values()],
            }
            for prediction in self._all.values()
        ]

    def cancel(self, prediction: Prediction) -> None:
        """Stop it, if it has not ended."""
        self._stop(prediction, "canceled")

    def output(self, path: str) -> Output | None:
        """What is at a delivery address, if it is still there."""
        output = self._outputs.get(path)
        return output if output is not None and self._now() < output.ends_at else None

    async def close(self) -> None:
        """Stop all without a word."""
        tasks = [prediction.task for prediction in self._all.values() if prediction.task is not None]
        for prediction in self._all.values():
            if prediction.alarm is not None:
                prediction.alarm.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, prediction: Prediction, fetch: Fetch) -> None:
        await self._pass(QUEUE_S)
        if "stalled_queue" in prediction.faults:
            await asyncio.Event().wait()
        prediction.started_at = self._now()
        prediction.status = "processing"
        self._tell(prediction, "start")
        try:
            made = await self._run(prediction, fetch)
            await self._pass(float(self._run_s(prediction)))
        except RunFailed as failure:
            await self._pass(float(self._run_s(prediction)) / 4 if failure.has_run else 0)
            prediction.error = failure.error
            self._end(prediction, "failed", self._run_s(prediction) if failure.has_run else None)
            return
        prediction.logs = "Running prediction\n100%|##########| 18/18 [00:01<00:00, 12.00it/s]\n"
        self._tell(prediction, "logs")
        prediction.output = self._deliver(prediction, made)
        prediction.has_news.set()
        self._tell(prediction, "output")
        await self._pass(SETTLE_S)
        self._end(prediction, "succeeded", self._run_s(prediction))

    async def _pass(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed)

    def _run_s(self, prediction: Prediction) -> Decimal:
        return prediction.model.price.typical_s or TYPICAL_S

    async def _run(self, prediction: Prediction, fetch: Fetch) -> list[_Made]:
        for name, (error, has_run) in FAILURES.items():
            if name in prediction.faults:
                raise RunFailed(error, has_run=has_run)
        given = dropped_unknown(prediction.model.inputs, prediction.given)
        if any(isinstance(value, str) and value.startswith("data:") and len(value) > INLINE_BYTES for value in given.values()):
            raise RunFailed(FAILURES["interrupted_pa"][0], has_run=False)
        return [await _spoilt(picture, prediction.faults) for picture in await make_pictures(prediction.model, given, fetch)]

    def _deliver(self, prediction: Prediction, made: list[_Made]) -> Json:
        """Put the files where they can be fetched. Returns the model's output."""
        prediction.pixels = [picture.pixels for picture in made]
        addresses: list[str] = []
        for at, picture in enumerate(made):
            ending = "jpg" if picture.format == "jpeg" else picture.format
            path = f"/delivery/xezq/{new_id()}/{'out-' + str(at) if prediction.model.gives_list else 'output'}.{ending}"
            self._outputs[path] = Output(picture.data, picture.mime, self._now() + KEPT, prediction.faults)
            prediction.paths.append(path)
            foreign = prediction.faults.get("foreign_result")
            addresses.append(f"{elsewhere(foreign) if foreign else self._delivery or prediction.origin}{path}")
        if "empty_output" in prediction.faults:
            return [] if prediction.model.gives_list else None
        return addresses if prediction.model.gives_list else addresses[0]

    def _refreshed(self, prediction: Prediction) -> Prediction:
        """The prediction once what time has done to it is done: its deadline, and the removal of its data."""
        now = self._now()
        if not prediction.has_ended and prediction.deadline is not None and now >= prediction.deadline:
            self._stop(prediction, "aborted" if prediction.status == "starting" else "canceled")
        if prediction.completed_at is not None and now >= prediction.completed_at + KEPT:
            self._forget_data(prediction)
        return prediction

    def _forget_data(self, prediction: Prediction) -> None:
        prediction.data_removed = True
        prediction.given, prediction.output, prediction.logs = {}, None, ""
        for path in prediction.paths:
            self._outputs.pop(path, None)
        prediction.paths.clear()

    def _stop(self, prediction: Prediction, status: str) -> None:
        if prediction.has_ended:
            return
        if prediction.task is not None:
            prediction.task.cancel()
        ran = None
        if prediction.started_at is not None:
            life_s = (self._now() - prediction.started_at).total_seconds() * self._speed
            ran = min(Decimal(f"{max(0.0, life_s):.3f}"), self._run_s(prediction))
        self._end(prediction, status, ran)

    def _end(self, prediction: Prediction, status: str, predict_s: Decimal | None) -> None:
        prediction.status = status
        prediction.completed_at = self._now()
        prediction.predict_s = predict_s
        if prediction.alarm is not None:
            prediction.alarm.cancel()
        prediction.has_news.set()
        self._bill(prediction)
        if status == "succeeded" and "expired_result" in prediction.faults:
            self._forget_data(prediction)
        self._tell(prediction, "completed")

    def _bill(self, prediction: Prediction) -> None:
        """Seconds are paid for however it ended, pictures and their megapixels only if they were made."""
        terms, seconds = prediction.model.price, prediction.predict_s
        results = prediction.pixels if prediction.status == "succeeded" else []
        if seconds is None or (terms.unit is not PriceUnit.SECOND and not results):
            return
        by_picture = {PriceUnit.IMAGE: Decimal(len(results)), PriceUnit.OUTPUT_MEGAPIXEL: sum(results) / MEGAPIXEL}
        self._kit.bill.charge(
            prediction.id,
            prediction.model.endpoint,
            units=by_picture.get(terms.unit),
            seconds=seconds,
            usd=price(terms, seconds=seconds, results=results).usd,
            answered=prediction.answered,
        )

    def _tell(self, prediction: Prediction, event: str) -> None:
        if prediction.webhook is not None and event in prediction.events and "webhook_lost" not in prediction.faults:
            self._webhooks.send(prediction.webhook, prediction.as_json(), is_last=event == "completed")


def _shortened(value: Json) -> Json:
    return f"{value.partition(',')[0]},…" if isinstance(value, str) and value.startswith("data:") else value


async def _spoilt(data: bytes, faults: Mapping[str, Fault]) -> _Made:
    """A result, as far as the faults leave it whole."""
    facts = await pictures.inspect(data)
    width, height = facts.width, facts.height
    if "wrong_size" in faults:
        width, height = max(1, width * 2 // 3), max(1, height * 2 // 3)
        data = await pictures.resized(data, (width, height), facts.format)
    if "black" in faults:
        data = await pictures.black((width, height), facts.format)
    if "corrupt" in faults:
        data = pictures.corrupted(data)
    if "truncated_download" in faults:
        data = data[: len(data) // 2]
    return _Made(data, facts.mime, facts.format, width * height)


def elsewhere(fault: Fault) -> str:
    """The origin of somebody else's server: as the fault says, or one where nobody listens."""
    return fault.arg or "http://127.0.0.2:9"


def new_id() -> str:
    """26 characters, as Replicate's are."""
    return b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def moment(when: datetime) -> str:
    """A time as the API writes it."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
