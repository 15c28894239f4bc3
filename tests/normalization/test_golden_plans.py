"""What the standard requests become with every offer is written down in `plans/`, and reviewed like code.

`REWRITE_PLANS=1 pytest tests/normalization/test_golden_plans.py` writes the files anew.
"""

import os
from pathlib import Path

import pytest

from normalization.planner import plan_request
from providers.catalog import load_catalog
from tests.normalization.golden import standard_requests, written

PLANS = Path(__file__).parent / "plans"
CATALOG = load_catalog()
OFFERS = {f"{model.id}.{offer.provider}": offer for model in CATALOG.models.values() for offer in model.offers}
REWRITE = bool(os.environ.get("REWRITE_PLANS"))


@pytest.mark.parametrize("name", OFFERS)
def test_plans_are_those_that_were_reviewed(name: str):
    """Every standard request becomes, with this offer, what its file says."""
    path = PLANS / f"{name}.txt"
    text = written(OFFERS[name], CATALOG.parameters)
    if REWRITE:
        path.write_text(text, encoding="utf-8")

    assert path.read_text(encoding="utf-8") == text


def test_every_file_belongs_to_an_offer():
    """No plans are kept of an offer that is gone, and no two offers share a file."""
    assert {path.stem for path in PLANS.glob("*.txt")} == set(OFFERS)
    assert len(OFFERS) == sum(len(model.offers) for model in CATALOG.models.values())


@pytest.mark.parametrize("name", OFFERS)
def test_payloads_have_only_what_the_offer_declares(name: str):
    """No standard request makes a call with a field that neither the offer nor the caller named."""
    offer = OFFERS[name]
    declared = {rule.to or param for param, rule in offer.params.items()} | set(offer.fixed)

    plans = [plan_request(request, offer, CATALOG.parameters) for request in standard_requests(offer).values()]
    sent = {field for plan in plans for call in plan.calls for field in call.payload}

    assert sent <= declared | {"brand_new"}
