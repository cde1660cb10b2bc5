"""obstore: clients for a place, what their errors mean, and how they survive a fork."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from shufflestore.errors import EngineUnavailable, MissingDependency, OptionError
from shufflestore.storage.process import briefly
from shufflestore.storage.uri import Place, place_of

__all__ = ["Answer", "RemoteOptions", "answer_of", "client_for", "library", "options_of"]

_log = logging.getLogger("shufflestore")


@dataclass(frozen=True)
class RemoteOptions:
    """How hard a store is asked. Every field may stand in `storage_options`."""

    max_in_flight: int = 128
    """Requests at a time; fewer once the store says that it is too many."""
    attempts: int = 8
    """Of one request, its first included: at one failure in two, one request in 256 fails them all."""
    hedge: bool = True
    """Whether a request that takes far longer than most is sent again; adds at most 4 % to the requests."""
    connect_seconds: float = 5.0
    read_seconds: float = 30.0
    """Of one attempt, from its sending to the last byte of the answer."""
    total_seconds: float = 120.0
    """Of one request, all attempts and the waiting between them included."""
    gap_bytes: int = 32 << 10
    """Ranges of one object that lie no farther apart are read by one request: about what a request costs in time."""
    most_bytes: int = 8 << 20
    """Of one request that serves several ranges."""

    def __post_init__(self) -> None:
        """Check the ranges. Raises OptionError."""
        for name in ("max_in_flight", "attempts", "most_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"storage_options: {name} is {value!r}; it is a whole number of at least 1")
        if isinstance(self.gap_bytes, bool) or not isinstance(self.gap_bytes, int) or self.gap_bytes < 0:
            raise OptionError(f"storage_options: gap_bytes is {self.gap_bytes!r}; it is a whole number of at least 0")
        for name in ("connect_seconds", "read_seconds", "total_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise OptionError(f"storage_options: {name} is {value!r}; it is a number of seconds above 0")
        if not isinstance(self.hedge, bool):
            raise OptionError(f"storage_options: hedge is {self.hedge!r}; it is True or False")


_OWN: Final = frozenset(field.name for field in fields(RemoteOptions))
_CLIENT: Final = frozenset(
    {
        "allow_http", "allow_invalid_certificates", "connect_timeout", "default_content_type", "default_headers",
        "http1_only", "http2_keep_alive_interval", "http2_keep_alive_timeout", "http2_keep_alive_while_idle", "http2_only",
        "pool_idle_timeout", "pool_max_idle_per_host", "proxy_url", "proxy_ca_certificate", "proxy_excludes",
        "randomize_addresses", "read_timeout", "root_certificate", "timeout", "user_agent",
    }
)  # fmt: skip
"""obstore's ClientConfig: what belongs to HTTP and not to one kind of store."""


def options_of(storage_options: Mapping[str, Any] | None) -> RemoteOptions:
    """Return our own part of `storage_options`. Raises OptionError for a value out of range."""
    return RemoteOptions(**{name: value for name, value in (storage_options or {}).items() if name in _OWN})


def client_for(uri: str, storage_options: Mapping[str, Any] | None = None, retries: int = 0) -> tuple[Any, str]:
    """Return an obstore store for the bucket or server of a URI, and the prefix of every name in it.

    Credentials and endpoints are found as obstore finds them: `AWS_*`, `GOOGLE_*` and `AZURE_*` variables, the machine's
    own identity; for S3 the profiles of boto3 too, where it is installed.

    Args:
        uri: Of an object store or an HTTP server; see `storage.uri`.
        storage_options: Fields of RemoteOptions, of obstore's ClientConfig, and of the store's own configuration
            ("region", "endpoint", "access_key_id", "skip_signature", ...), "credential_provider" too.
        retries: By obstore itself, which is all that can try one part of a multipart upload again. 0 for what is read:
            `storage.remote_requests` decides there.

    Returns:
        The client, and a prefix without slashes at its ends, which may be empty.

    Raises:
        OptionError: The URI or an option is none that the store knows. MissingDependency: obstore is not installed.
    """
    place, given = place_of(uri), dict(storage_options or {})
    options = options_of(given)
    http = {name: given.pop(name) for name in list(given) if name in _CLIENT}
    http.setdefault("connect_timeout", timedelta(seconds=options.connect_seconds))
    http.setdefault("timeout", timedelta(seconds=min(options.read_seconds, options.total_seconds)))
    config = {name: value for name, value in given.items() if name not in _OWN}
    if _is_plain(place, config):
        http.setdefault("allow_http", True)
    arguments: dict[str, Any] = {"client_options": http, "retry_config": {"max_retries": retries}}
    provider = config.pop("credential_provider", None) or _profile(place, config)
    if provider is not None:
        arguments["credential_provider"] = provider
    stores = library().store
    try:
        if place.kind in ("http", "hf"):
            if config:
                raise OptionError(f"{uri}: storage_options {sorted(config)} mean nothing to an HTTP server")
            if place.kind == "hf":
                http["default_headers"] = {**_hub_token(), **http.get("default_headers", {})}
            return stores.HTTPStore(place.root, **arguments), place.prefix
        kind = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[place.kind]
        return kind.from_url(place.root, config=config or None, **arguments), place.prefix
    except OptionError:
        raise
    except Exception as cause:  # obstore's errors have several unrelated bases
        raise OptionError(f"{uri}: {answer_of(cause).text}; see storage_options in docs/object_stores.md") from cause


def _is_plain(place: Place, config: Mapping[str, Any]) -> bool:
    """Whether the endpoint is http:// and not https://, by the URI, an option or a variable."""
    given = [value for name, value in config.items() if "endpoint" in name.lower() or "base_url" in name.lower()]
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    return any(
        str(value).lower().startswith("http://")
        for value in (place.root, *given, *(os.environ.get(n, "") for n in names))
    )


def _profile(place: Place, config: Mapping[str, Any]) -> Any:
    """boto3's credentials where somebody set a profile for it and nothing nearer; None else."""
    names = {name.lower().removeprefix("aws_") for name in config}
    is_set = {"access_key_id", "skip_signature", "token"} & names or "AWS_ACCESS_KEY_ID" in os.environ
    home = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    has_profile = "AWS_PROFILE" in os.environ or home.is_file()
    if place.kind != "s3" or is_set or not has_profile or importlib.util.find_spec("boto3") is None:
        return None
    return importlib.import_module("obstore.auth.boto3").Boto3CredentialProvider()


def _hub_token() -> dict[str, str]:
    """The Hub's token as its own library finds it. Raises MissingDependency without that library."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as cause:
        raise MissingDependency("hf:// paths need huggingface_hub: pip install huggingface_hub") from cause
    token = hub.get_token()
    return {"authorization": f"Bearer {token}"} if token else {}


# -- what an error means ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Why a request did not bring what it should."""

    kind: str
    """"throttled", "transient", "denied", "missing", "changed", "beyond" (the end), "exists", "fatal"; "checksum"."""
    text: str
    """What the store said, in one line."""


def answer_of(cause: BaseException) -> Answer:
    """Return what one of obstore's errors means for us."""
    text = str(cause)
    first, _, debug = text.partition("\n")
    first = re.sub(r" in [\d.]+[^\s\d]+ - ", " - ", first).removeprefix("Generic ").strip().rstrip(".")
    for kind, words in (
        ("Timeout", "timed out"),
        ("Connect", "could not connect"),
        ("Interrupted", "connection broke off"),
    ):
        if f"kind: {kind}," in debug:
            first = f"{first} ({words})"
    return Answer(_kind_of(cause, text), first[:400])


_BY_NAME: Final = {
    "FileNotFoundError": "missing", "NotFoundError": "missing", "PermissionDeniedError": "denied",
    "UnauthenticatedError": "denied", "PreconditionError": "changed", "AlreadyExistsError": "exists",
    "FileExistsError": "exists", "NotModifiedError": "changed", "InvalidPathError": "fatal",
    "UnknownConfigurationKeyError": "fatal", "NotSupportedError": "transient",
}  # fmt: skip


def _kind_of(cause: BaseException, text: str) -> str:
    # By name: a forked child has obstore's classes twice.
    if (known := _BY_NAME.get(type(cause).__name__)) is not None:
        return known
    if type(cause).__name__ not in ("GenericError", "BaseError", "JoinError"):
        return "fatal"
    if "169.254.169.254" in text or "ExpiredToken" in text or "InvalidToken" in text:
        return "denied"
    if "redirect without LOCATION" in text:
        return "fatal"
    found = re.search(r"status code: (\d{3})", text)
    if found is None or "RequestTimeout" in text:
        return "transient"  # the network, or an answer that was not whole
    status = int(found[1])
    if status in (429, 503):
        return "throttled"
    if status == 416:
        return "beyond"
    return "transient" if status >= 500 or status in (408, 425) else "fatal"


# -- forks -----------------------------------------------------------------------------------------

_libraries: dict[int, ModuleType] = {}
"""obstore by process."""


def library() -> ModuleType:
    """Return the obstore of this process.

    Its threads do not survive a fork, and a request in the child would wait for them for ever. So a process whose
    parent has used obstore loads another copy of the extension module, which starts threads of its own.

    Raises:
        MissingDependency: obstore is not installed. EngineUnavailable: A forked child cannot load it again.
    """
    found = _libraries.get(os.getpid())
    if found is None:
        with briefly:
            found = _libraries.get(os.getpid())
            if found is None:
                found = _load_again() if _libraries else _load()
                _libraries.clear()
                _libraries[os.getpid()] = found
    return found


def _load() -> ModuleType:
    try:
        found = importlib.import_module("obstore")
        importlib.import_module("obstore.store")
    except ImportError as cause:
        raise MissingDependency("object stores are read through obstore: pip install 'shufflestore[remote]'") from cause
    return found


def _load_again() -> ModuleType:
    """Load obstore from a copy of its file: the dynamic linker would hand out the first one again."""
    original = Path(sys.modules["obstore._obstore"].__file__ or "")
    first = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "obstore"}
    for name in first:
        del sys.modules[name]
    try:
        copy = os.memfd_create("obstore", os.MFD_CLOEXEC)
        with original.open("rb") as source:
            size, sent = os.fstat(source.fileno()).st_size, 0
            while sent < size:
                sent += os.sendfile(copy, source.fileno(), sent, size - sent)
        path = f"/proc/self/fd/{copy}"
        loader = importlib.machinery.ExtensionFileLoader("obstore._obstore", path)
        spec = importlib.util.spec_from_file_location("obstore._obstore", path, loader=loader)
        assert spec is not None, "a loader was given"
        sys.modules["obstore._obstore"] = native = importlib.util.module_from_spec(spec)
        loader.exec_module(native)
        os.close(copy)  # what was loaded stays mapped
        return _load()
    except (OSError, ImportError, AttributeError) as cause:
        raise EngineUnavailable(
            f"obstore cannot be loaded a second time in this forked process ({cause}), and its threads do not survive a "
            "fork; start workers with multiprocessing_context='spawn' or 'forkserver'"
        ) from cause
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
            del sys.modules[name]
        sys.modules.update(first)
