"""Clients: which options go where, whose credentials are used, and what errors mean."""

from __future__ import annotations

import os

import pytest

from shufflestore.errors import OptionError
from shufflestore.storage.remote_client import answer_of, client_for, library, options_of

SAFE = {"region": "here", "skip_signature": "true"}


@pytest.fixture(autouse=True)
def _nobodys_credentials(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def test_options_are_divided_between_us_the_client_and_the_store():
    client, prefix = client_for("s3://b/a/c", {**SAFE, "max_in_flight": 7, "read_seconds": 9.0, "user_agent": "me"})
    assert prefix == "a/c"
    assert client.config == {"bucket": "b", "region": "here", "skip_signature": "true"}
    assert client.client_options["user_agent"] == "me"
    assert client.client_options["timeout"] == "9s"
    assert client.client_options["connect_timeout"] == "5s"
    assert client.retry_config["max_retries"] == 0
    assert options_of({"max_in_flight": 7, **SAFE}).max_in_flight == 7


def test_no_attempt_may_take_longer_than_all_together():
    client, _ = client_for("s3://b", {**SAFE, "read_seconds": 30.0, "total_seconds": 2.0})
    assert client.client_options["timeout"] == "2s"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_in_flight", 0), ("max_in_flight", 1.5), ("attempts", True), ("hedge", 1), ("read_seconds", 0),
        ("total_seconds", float("inf")), ("gap_bytes", -1), ("most_bytes", 0),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(OptionError, match=f"{name} is {value!r}"):
        options_of({name: value})


@pytest.mark.parametrize("uri", ["s3://b/x", "gs://b/x", "http://h/x"])
def test_an_option_that_means_nothing_is_named(uri):
    with pytest.raises(OptionError, match="nonsense"):
        client_for(uri, {"nonsense": "1"})


def test_a_plain_http_endpoint_is_allowed_as_it_was_written(monkeypatch):
    given, _ = client_for("s3://b", {**SAFE, "endpoint": "http://127.0.0.1:1"})
    assert given.client_options["allow_http"] in (True, "true")
    secure, _ = client_for("s3://b", {**SAFE, "endpoint": "https://127.0.0.1:1"})
    assert "allow_http" not in secure.client_options
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    found, _ = client_for("s3://b", SAFE)
    assert found.client_options["allow_http"] in (True, "true")


def test_a_profile_of_boto3_is_used_where_nothing_nearer_is_set(monkeypatch, tmp_path):
    pytest.importorskip("boto3")
    file = tmp_path / "credentials"
    file.write_text("[work]\naws_access_key_id = from-profile\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "work")
    client, _ = client_for("s3://b", {"region": "here"})
    assert client.credential_provider()["access_key_id"] == "from-profile"
    assert client_for("s3://b", SAFE)[0].credential_provider is None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nearer")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert client_for("s3://b", {"region": "here"})[0].credential_provider is None


def test_the_hub_is_asked_with_its_own_token(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    client, prefix = client_for("hf://datasets/o/n@v1/sub")
    assert (client.url, prefix) == ("https://huggingface.co/datasets/o/n/resolve/v1", "sub")
    assert "hf_secret" in str(client.client_options["default_headers"])


class GenericError(Exception):
    """As obstore's: told by its name, since a forked child has those classes twice."""


def generic(text: str) -> GenericError:
    return GenericError(f"Generic S3 error: {text}\n\nDebug source:\nGeneric {{ kind: Timeout, }}")


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (generic("Server returned non-2xx status code: 503 Service Unavailable"), "throttled"),
        (generic("Server returned non-2xx status code: 429 Too Many Requests"), "throttled"),
        (generic("Server returned non-2xx status code: 500 Internal"), "transient"),
        (generic("Server returned non-2xx status code: 408 Request Timeout"), "transient"),
        (generic("Server returned non-2xx status code: 400 Bad Request: <Code>RequestTimeout</Code>"), "transient"),
        (generic("Server returned non-2xx status code: 400 Bad Request: <Code>ExpiredToken</Code>"), "denied"),
        (generic("Server returned non-2xx status code: 400 Bad Request"), "fatal"),
        (generic("Server returned non-2xx status code: 416 Range Not Satisfiable"), "beyond"),
        (generic("HTTP error: error sending request"), "transient"),
        (generic("Requested 0..100, got 5..105"), "transient"),
        (generic("Received redirect without LOCATION, this normally indicates a wrong region"), "fatal"),
        (FileNotFoundError("x"), "missing"),
        (ZeroDivisionError("ours"), "fatal"),
    ],
)  # fmt: skip
def test_errors_are_told_apart(cause, kind):
    assert answer_of(cause).kind == kind


def test_what_was_said_is_one_line_without_the_time_it_took():
    text = "Error performing GET http://h/x in 1.2ms - Server returned non-2xx status code: 503 Slow"
    assert answer_of(generic(text)).text == (
        "S3 error: Error performing GET http://h/x - Server returned non-2xx status code: 503 Slow (timed out)"
    )


def test_a_forked_child_has_an_obstore_of_its_own_and_a_user_s_import_stays_the_first():
    import obstore

    assert library() is obstore
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mine = library()
            import obstore as again

            code = 0 if (mine is not obstore, again is obstore, library() is mine) == (True, True, True) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert library() is obstore
