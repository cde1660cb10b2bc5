"""How the store misbehaves: kinds of faults, the settings of a run, and the seeded choice of what meets which request."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from benchmarks.harness.object_store.messages import Refusal, Reply, Request

__all__ = ["FAULTS", "OPERATIONS", "Dealer", "Fault", "Settings", "alter", "lead_astray", "refuse"]

OPERATIONS: Final = ("DELETE", "GET", "HEAD", "LIST", "POST", "PUT")

_REFUSALS: Final[Mapping[str, tuple[int, str]]] = {
    "slow_down": (503, "SlowDown"),
    "slow_down_retry_after": (503, "SlowDown"),
    "internal_error": (500, "InternalError"),
    "bad_gateway": (502, "BadGateway"),
    "gateway_timeout": (504, "GatewayTimeout"),
    "too_many_requests": (429, "TooManyRequests"),
    "request_timeout": (408, "RequestTimeout"),
    "moved_permanently": (301, "PermanentRedirect"),
    "temporary_redirect": (307, "TemporaryRedirect"),
    "expired_token": (403, "ExpiredToken"),
    "commit_412": (412, "PreconditionFailed"),
    "commit_409": (409, "ConditionalRequestConflict"),
    "missing_once": (404, "NoSuchKey"),
}
"""Kinds that answer without doing anything."""

_WHERE: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(_REFUSALS, OPERATIONS),
    "commit_412": ("COMMIT",),
    "commit_409": ("COMMIT",),
    "missing_once": ("GET", "HEAD"),
    "reset_before_headers": OPERATIONS,
    "reset_in_headers": OPERATIONS,
    "reset_in_body": ("GET", "LIST"),
    "short_body": ("GET", "LIST"),
    "short_body_without_length": ("GET",),
    "long_body": ("GET",),
    "bytes_after_body": ("GET", "LIST"),
    "whole_object": ("RANGE",),
    "wrong_range": ("RANGE",),
    "flipped_bit": ("GET",),
    "other_version": ("GET", "HEAD"),
    "drip": ("GET",),
    "stall": OPERATIONS,
    "reply_lost": ("DELETE", "POST", "PUT"),
    "stale_list": ("LIST",),
}
"""What requests a kind can meet: operations; RANGE, a GET with a range; COMMIT, a write on a condition."""

FAULTS: Final = tuple(sorted(_WHERE))
"""The kinds of faults.

- bad_gateway, expired_token (403), gateway_timeout, internal_error, missing_once (404), request_timeout (408), slow_down (503),
  slow_down_retry_after, too_many_requests (429): that status and nothing done. moved_permanently (301) and temporary_redirect
  (307) lead to the same address. commit_409 and commit_412 meet conditional writes only, and write nothing.
- reset_before_headers (nothing done), reset_in_headers, reset_in_body: the connection is reset there.
- short_body: half of the body, then the end of the connection. short_body_without_length: likewise without Content-Length, so
  that only Content-Range gives it away. long_body: 7 bytes too many, Content-Length counting them. bytes_after_body: 7 bytes
  after what Content-Length counts.
- whole_object: 200 and the whole object instead of a range. wrong_range: a range one byte beside the one asked for, told so.
- flipped_bit: one bit of the body is wrong. other_version: another ETag and every byte another, If-Match or not.
- drip: the body at `drip_bytes_per_second`. stall: half of the reply, `stall_seconds` of nothing, then the rest.
- reply_lost: a write is done, then the connection is reset. stale_list: what was there `stale_seconds` ago.
"""


@dataclass(frozen=True)
class Fault:
    """A kind of fault and whom it meets. Requests are counted from 0; each draws once."""

    kind: str
    rate: float = 0.0
    """The share of the requests that it can meet, in [0, 1]."""
    methods: tuple[str, ...] = ()
    """Only these of OPERATIONS; all if empty."""
    prefix: str = ""
    """Only where "bucket/key" begins so."""
    suffix: str = ""
    """Only where "bucket/key" ends so."""
    most: int | None = None
    """How often at most."""
    total_seconds: float = 0.0
    """For so long from being set, it meets all it can; `rate` counts afterwards."""

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise ValueError(f"no fault {self.kind!r}; there are: {', '.join(FAULTS)}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"{self.kind}: rate {self.rate} is outside [0, 1]")
        object.__setattr__(self, "methods", tuple(self.methods))  # JSON makes a list of it
        if unknown := set(self.methods) - set(OPERATIONS):
            raise ValueError(f"{self.kind}: methods {sorted(unknown)} are none of {', '.join(OPERATIONS)}")

    def can_meet(self, request: Request) -> bool:
        """Whether it can meet such a request."""
        operation = request.operation
        where = _WHERE[self.kind]
        if self.methods and operation not in self.methods:
            return False
        if operation not in where and not (
            ("RANGE" in where and operation == "GET" and "range" in request.headers)
            or ("COMMIT" in where and request.is_commit)
        ):
            return False
        path = f"{request.bucket}/{request.key}"
        return path.startswith(self.prefix) and path.endswith(self.suffix)


@dataclass(frozen=True)
class Settings:
    """How quick and how faulty the store is. All of it may change while it runs."""

    latency_seconds: float = 0.0
    """From a request's last byte to its reply's first."""
    tail: tuple[float, float] | None = None
    """(share, seconds): so many of the requests take that long instead."""
    bandwidth_bytes_per_second: float | None = None
    """What all bodies of replies share."""
    faults: Sequence[Fault] = ()
    seed: int = 0
    stall_seconds: float = 30.0
    drip_bytes_per_second: float = 1024.0
    retry_after_seconds: int = 1
    stale_seconds: float = 5.0
    can_repeat_completion: bool = True
    """Whether completing an upload a second time is told the same again, as S3 does, or NoSuchUpload, as MinIO does."""

    def __post_init__(self) -> None:
        faults: Any = self.faults
        if isinstance(faults, Mapping):
            faults = [Fault(kind, rate) for kind, rate in faults.items()]
        made = tuple(one if isinstance(one, Fault) else Fault(**one) for one in faults)
        object.__setattr__(self, "faults", made)
        always = [one for one in made if not (one.methods or one.prefix or one.suffix) and one.most is None]
        for operation in (*OPERATIONS, "RANGE", "COMMIT"):
            if (total := sum(one.rate for one in always if operation in _WHERE[one.kind])) > 1 + 1e-9:
                raise ValueError(f"the rates of faults that meet {operation} add up to {total:.3f}, more than 1")

    def but(self, changes: Mapping[str, Any]) -> Settings:
        """Return these settings with changes. Raises ValueError for a name that is none."""
        names = [one.name for one in fields(self)]
        if unknown := set(changes) - set(names):
            raise ValueError(f"no settings {sorted(unknown)}; there are: {', '.join(names)}")
        return Settings(**{**{name: getattr(self, name) for name in names}, **changes})

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can carry, and `but` takes."""
        return asdict(self)


@dataclass(slots=True)
class Dealer:
    """Decides what meets each request: of the same settings, request n always draws the same."""

    settings: Settings
    began: float
    dealt: dict[str, int] = field(default_factory=dict)
    """Faults by kind."""
    number: int = 0
    """Requests that have drawn."""
    _by_fault: list[int] = field(init=False)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._by_fault = [0] * len(self.settings.faults)
        self._random = random.Random(self.settings.seed)

    def deal(self, request: Request, now: float) -> tuple[str | None, float]:
        """Return the kind of fault, if any, and the seconds to wait before the reply."""
        self.number += 1
        drawn, slow = self._random.random(), self._random.random()
        tail = self.settings.tail
        seconds = tail[1] if tail is not None and slow < tail[0] else self.settings.latency_seconds
        below = 0.0
        for index, fault in enumerate(self.settings.faults):
            if fault.most is not None and self._by_fault[index] >= fault.most:
                continue
            if not fault.can_meet(request):
                continue
            below += 1.0 if now - self.began < fault.total_seconds else fault.rate
            if drawn < below:
                self._by_fault[index] += 1
                self.dealt[fault.kind] = self.dealt.get(fault.kind, 0) + 1
                return fault.kind, seconds
        return None, seconds


def refuse(kind: str, request: Request, settings: Settings) -> Refusal | None:
    """Return what a request that is not carried out is told, None for a kind that carries it out."""
    if kind not in _REFUSALS:
        return None
    status, code = _REFUSALS[kind]
    headers = {}
    if kind == "slow_down_retry_after":
        headers["Retry-After"] = str(settings.retry_after_seconds)
    if status in (301, 307):
        headers["Location"] = f"http://{request.headers.get('host', '')}{request.target}"
    return Refusal(status, code, f"dealt: {kind}", headers)


def lead_astray(kind: str, request: Request) -> None:
    """Change a request so that an honest answer to it is the fault."""
    if kind == "whole_object":
        del request.headers["range"]
    elif kind == "other_version":
        request.headers.pop("if-match", None)
    elif kind == "stale_list":
        request.is_stale = True
    elif kind == "wrong_range":
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers["range"])
        if found is None:
            return
        start, stop = found.groups()
        if not start:
            start, stop = "", str(int(stop) + 1)
        else:
            step = -1 if int(start) > 0 else 1
            start, stop = str(int(start) + step), str(int(stop) + step) if stop else ""
        request.headers["range"] = f"bytes={start}-{stop}"


def alter(kind: str, reply: Reply, number: int) -> None:
    """Change a reply, by `number` where there is a choice; for kinds whose fault is in what is told, not in how."""
    if kind == "flipped_bit":
        reply.load()
        if reply.body:
            changed = bytearray(reply.body)
            bit = random.Random(number).randrange(8 * len(changed))
            changed[bit // 8] ^= 1 << bit % 8
            reply.body = bytes(changed)
    elif kind == "other_version":
        if reply.status in (200, 206):
            reply.load()
            reply.body = reply.body.translate(bytes(255 - byte for byte in range(256)))
            reply.headers["ETag"] = f'"other-{number:x}"'
    elif kind == "long_body":
        reply.load()
        reply.body += b"surplus"
        reply.headers.pop("Content-Length", None)
