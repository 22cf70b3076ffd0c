"""Every metric of the gateway."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter(
    "botplane_gateway_calls_total",
    "Calls by what became of them: answered, error (by the provider), or why they were refused.",
    ["outcome"],
)
PROVIDER_SECONDS = Histogram(
    "botplane_gateway_provider_seconds",
    "Seconds that a provider took, by chain.",
    ["chain"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
UNWRITTEN = Gauge("botplane_gateway_unwritten_calls", "Answered calls that Postgres lacks.")
READ_AT = Gauge(
    "botplane_gateway_access_read_timestamp_seconds",
    "When keys and limits were read last, as Unix time.",
)

for _outcome in ("answered", "error"):
    CALLS.labels(_outcome)
