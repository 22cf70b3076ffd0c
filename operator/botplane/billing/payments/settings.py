"""Which payment processor an installation uses, from environment variables `BOTPLANE_*`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from botplane.billing.payments.fake import FakeProcessor
from botplane.billing.payments.stripe import StripeProcessor
from botplane.errors import Rejected

if TYPE_CHECKING:
    from botplane.billing.payments.policy import Processor


class PaymentSettings(BaseSettings):
    """How invoices are collected."""

    model_config = SettingsConfigDict(
        env_prefix="BOTPLANE_", use_attribute_docstrings=True, frozen=True
    )

    payment_processor: Literal["none", "fake", "stripe"] = "none"
    """Who collects. none: tenants pay by transfer, recorded with `botplane payment record`."""
    stripe_api_key: SecretStr = SecretStr("")
    """Secret key of the Stripe account. Needed with stripe."""
    stripe_webhook_secrets: SecretStr = SecretStr("")
    """Signing secrets of the webhook endpoint, separated by spaces: two while one rotates."""

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The secrets that a webhook may be signed with."""
        return tuple(self.stripe_webhook_secrets.get_secret_value().split())


def open_processor(settings: PaymentSettings) -> Processor | None:
    """Return the processor that is set, None for transfers.

    Raises:
        Rejected: Stripe is set without a key.
    """
    match settings.payment_processor:
        case "none":
            return None
        case "fake":
            return FakeProcessor()
        case "stripe":
            key = settings.stripe_api_key.get_secret_value()
            if not key:
                raise Rejected("SettingMissing", "Set BOTPLANE_STRIPE_API_KEY for Stripe.")
            return StripeProcessor(key)
