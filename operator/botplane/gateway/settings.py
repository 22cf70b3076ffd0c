"""What the gateway needs to know, from environment variables `BOTPLANE_*`."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """What an installation decides of its gateway."""

    model_config = SettingsConfigDict(
        env_prefix="BOTPLANE_", use_attribute_docstrings=True, frozen=True
    )

    rpc_endpoints: Path = Path("/etc/botplane/rpc-endpoints.json")
    """File, mounted from a Secret, with the provider's address of each chain:
    `{"solana-mainnet": "https://provider.example/key"}`."""
    gateway_port: int = 8545
    """TCP port that bots call."""
    gateway_health_port: int = 8082
    """Port of /livez, /readyz and /metrics, which bots do not reach."""
