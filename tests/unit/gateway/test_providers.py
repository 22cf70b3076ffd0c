"""Where the providers are: a file that is read once, and whose addresses nobody else sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from botplane.errors import Rejected
from botplane.gateway.providers import read_endpoints, secrets_of

SECRET = "s3cr3t-key-of-the-provider"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"solana-mainnet": 1}',
        '{"solana-mainnet": "SECRET"}',
        '{"solana-mainnet": "ftp://host/SECRET"}',
        '{"solana-mainnet": "https:///SECRET"}',
        '{"solana-mainnet": "https://user:SECRET@host/"}',
        '{"solana-mainnet": "https://host:99999/SECRET"}',
        '{"Solana Mainnet": "https://host/SECRET"}',
        '{"../metrics": "https://host/SECRET"}',
    ],
)
def test_a_file_that_names_no_providers_is_refused_without_showing_it(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "rpc-endpoints.json"
    path.write_text(content.replace("SECRET", SECRET))

    with pytest.raises(Rejected) as refusal:
        read_endpoints(path)

    assert refusal.value.reason == "SettingInvalid"
    assert str(path) in refusal.value.message
    assert SECRET not in refusal.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"none\.json: No such file or directory"):
        read_endpoints(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        (f"https://rpc.example.com/v2/{SECRET}", {b"rpc.example.com", SECRET.encode()}),
        (f"https://rpc.example.com/?api-key={SECRET}", {b"rpc.example.com", SECRET.encode()}),
        (
            f"https://{SECRET}.rpc.example.com:8443/",
            {f"{SECRET}.rpc.example.com{port}".encode() for port in ("", ":8443")},
        ),
        ("https://rpc.example.com/mainnet-beta", {b"rpc.example.com"}),
        ("http://short/s3cr3t%2Dkey", {b"s3cr3t%2Dkey", b"s3cr3t-key"}),
        ("http://short/v2", set()),
    ],
)
def test_host_and_key_of_an_address_are_secrets(url: str, secrets: set[bytes]) -> None:
    assert set(secrets_of(url)) == secrets
