"""Replicate's predictions API."""

from providers.replicate.api import ReplicateSettings
from providers.replicate.provider import ReplicateProvider
from providers.replicate.webhooks import WebhookRefused, verify_webhook, webhook_key

__all__ = ["ReplicateProvider", "ReplicateSettings", "WebhookRefused", "verify_webhook", "webhook_key"]
