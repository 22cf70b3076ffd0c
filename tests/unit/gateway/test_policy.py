"""JSON-RPC in and out: what is taken, what is refused, and what stays as it is."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from botplane.api.conditions import Finding
from botplane.errors import Rejected, Retryable
from botplane.gateway.policy import (
    CODES,
    Access,
    Caller,
    answer_body,
    call_body,
    caller_of,
    check_age,
    check_limits,
    read_answer,
    read_request,
    refusal_body,
)

CALL = b'{"jsonrpc":"2.0","id":1,"method":"getSlot"}'
NESTED = b"[" * 60_000 + b"]" * 60_000

REFUSED = {
    "empty": (b"", "BodyInvalid"),
    "not JSON": (b"{", "BodyInvalid"),
    "a second value": (CALL + b"{}", "BodyInvalid"),
    "a byte order mark": (b"\xef\xbb\xbf" + CALL, "BodyInvalid"),
    "not UTF-8": (CALL[:-1] + b',"params":["\xff"]}', "BodyInvalid"),
    "UTF-16": (CALL.decode().encode("utf-16"), "BodyInvalid"),
    "NaN": (CALL[:-1] + b',"params":[NaN]}', "BodyInvalid"),
    "too deep": (CALL[:-1] + b',"params":' + NESTED + b"}", "BodyInvalid"),
    "a number": (b"1", "CallInvalid"),
    "an empty batch": (b"[]", "CallInvalid"),
    "51 calls": (b"[" + b",".join([CALL] * 51) + b"]", "CallInvalid"),
    "one bad call in a batch": (b"[" + CALL + b",1]", "CallInvalid"),
    "version 1": (CALL.replace(b"2.0", b"1.0"), "CallInvalid"),
    "no version": (b'{"id":1,"method":"getSlot"}', "CallInvalid"),
    "a notification": (b'{"jsonrpc":"2.0","method":"getSlot"}', "CallInvalid"),
    "no method": (b'{"jsonrpc":"2.0","id":1}', "CallInvalid"),
    "an empty method": (CALL.replace(b"getSlot", b""), "CallInvalid"),
    "a long method": (CALL.replace(b"getSlot", b"m" * 65), "CallInvalid"),
    "a method with a line end": (CALL.replace(b"getSlot", b"getSlot\\n"), "CallInvalid"),
    "a method with a quote": (CALL.replace(b"getSlot", b'a\\",\\"x'), "CallInvalid"),
    "a method by another spelling": (CALL[:-1] + b',"Method":"other"}', "CallInvalid"),
    "a field of nobody": (CALL[:-1] + b',"auth":1}', "CallInvalid"),
    "a float as id": (CALL.replace(b'"id":1', b'"id":1.0'), "CallInvalid"),
    "an id that a float would change": (CALL.replace(b":1,", b":9007199254740992,"), "CallInvalid"),
    "a list as id": (CALL.replace(b'"id":1', b'"id":[1]'), "CallInvalid"),
    "a long id": (CALL.replace(b'"id":1', b'"id":"%s"' % (b"x" * 129)), "CallInvalid"),
    "text as params": (CALL[:-1] + b',"params":"x"}', "CallInvalid"),
    "null as params": (CALL[:-1] + b',"params":null}', "CallInvalid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_json_rpc_is_refused_as_a_whole(name: str) -> None:
    body, reason = REFUSED[name]

    with pytest.raises(Rejected) as refusal:
        read_request(body)

    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    "params",
    [b"", b"[]", b"{}", b' [ "a" , 18446744073709551617, 1.10, "\\u00e9", "\xc3\xa9" ] '],
)
@pytest.mark.parametrize("call_id", [b"1", b"-9007199254740991", b"null", b'""', b'"\\u00e9 \\n"'])
def test_params_reach_the_provider_as_they_were_written(call_id: bytes, params: bytes) -> None:
    body = b'{ "params":%s, "id":%s,"jsonrpc":"2.0","method":"getSlot"}' % (
        params or b"[]",
        call_id,
    )
    if not params:
        body = b'{"id":%s,"jsonrpc":"2.0","method":"getSlot"}' % call_id

    (call,) = read_request(body).calls

    sent = call_body(call, 77)
    assert json.loads(sent) == {"jsonrpc": "2.0", "id": 77, "method": "getSlot"} | (
        {"params": json.loads(params)} if params else {}
    )
    assert params.strip() in sent
    answer = read_answer(b'{"id":77,"jsonrpc":"2.0","result":{"big":18446744073709551617}}', 77)
    told = answer_body(call, answer, [])
    assert json.loads(told)["id"] == json.loads(call_id)
    assert b'"result":{"big":18446744073709551617}' in told


def test_the_method_that_is_sent_is_the_one_that_was_read() -> None:
    body = b'{"jsonrpc":"2.0","id":1,"method":"getSlot","method":"getProgramAccounts"}'

    (call,) = read_request(body).calls

    sent: list[tuple[str, Any]] = json.loads(call_body(call, 5), object_pairs_hook=list)
    assert sent == [("jsonrpc", "2.0"), ("id", 5), ("method", call.method)]


def test_a_batch_of_one_stays_a_batch() -> None:
    assert read_request(CALL).is_batch is False
    assert read_request(b" [" + CALL + b"] ").is_batch is True


def test_a_refusal_says_the_same_in_words_code_and_reason() -> None:
    (call,) = read_request(CALL).calls
    refusal = Rejected("SpendLimitReached", "the spend limit of 5 USD is reached")

    told = json.loads(refusal_body(call, refusal))

    assert told == {
        "jsonrpc": "2.0",
        "id": 1,
        "error": {
            "code": -32010,
            "message": "the spend limit of 5 USD is reached",
            "data": {"reason": "SpendLimitReached"},
        },
    }
    assert CODES["SpendLimitReached"][0] == 402


def test_only_a_valid_key_of_a_tenant_within_its_limits_may_call() -> None:
    one, other = (Caller(tenant_id=uuid4(), bot_id=uuid4()) for _ in range(2))
    stopped = {other.tenant_id: Finding("UsageLimitReached", "all of rpc_calls is used")}
    access = Access(callers={b"one": one, b"other": other}, stopped=stopped, read_at=1000.0)

    assert caller_of(check_age(access, 1300.0), b"one") == one
    check_limits(access, one)
    with pytest.raises(Rejected, match="unknown or was revoked"):
        caller_of(access, b"third")
    with pytest.raises(Rejected, match="all of rpc_calls is used"):
        check_limits(access, caller_of(access, b"other"))
    with pytest.raises(Retryable, match="Try again later"):
        check_age(access, 1300.1)
    with pytest.raises(Retryable, match="Try again later"):
        check_age(None, 0.0)
