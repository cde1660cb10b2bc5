"""What an honest store answers: the part of S3's interface that clients of data sets use, plain HTTP within it."""

from __future__ import annotations

import base64
import os
import re
import time
from email.utils import parsedate_to_datetime
from html import escape, unescape
from typing import Final
from urllib.parse import quote, unquote

from benchmarks.harness.object_store.faults import Settings
from benchmarks.harness.object_store.files import Listed, Objects, Opened, check_content, is_any_of
from benchmarks.harness.object_store.messages import Refusal, Reply, Request

__all__ = ["answer"]

_IN_MEMORY: Final = 1 << 18
"""Longer bodies are read while they are sent."""
_PAGE: Final = 1000
"""Entries of a listing at most, as in S3."""


def answer(objects: Objects, request: Request, settings: Settings) -> Reply:
    """Carry a request out. Raises Refusal where S3 answers with an error."""
    if request.method in ("GET", "HEAD"):
        if request.key:
            return _get(objects, request)
        objects.check_bucket(request.bucket)
        return Reply(200) if request.method == "HEAD" else _list(objects, request, settings.stale_seconds)
    if request.method == "PUT":
        return _put(objects, request)
    if request.method == "POST":
        return _post(objects, request, settings.can_repeat_completion)
    if request.method == "DELETE" and request.key:
        if "uploadId" in request.query:
            objects.abort(request.query["uploadId"])
        else:
            objects.delete(request.bucket, request.key)
        return Reply(204)
    raise Refusal(405, "MethodNotAllowed", f"{request.method} is not served here")


# -- reading ---------------------------------------------------------------------------------------


def _get(objects: Objects, request: Request) -> Reply:
    opened = objects.open(request.bucket, request.key)
    headers = request.headers
    if not _is_wanted(opened, headers):
        return Reply(304, dict(opened.headers))
    start, stop, status = 0, opened.size, 200
    told = dict(opened.headers)
    asked = headers.get("range")
    if asked is not None and headers.get("if-range", opened.etag) == opened.etag:
        found = _range(asked, opened.size)
        if found is not None:
            (start, stop), status = found, 206
            told["Content-Range"] = f"bytes {start}-{stop - 1}/{opened.size}"
    told["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Reply(status, told)
    if stop - start > _IN_MEMORY:
        return Reply(status, told, file=(os.dup(opened.descriptor), start, stop))
    return Reply(status, told, os.pread(opened.descriptor, stop - start, start))


def _is_wanted(opened: Opened, headers: dict[str, str]) -> bool:
    """Whether conditions let the object be sent; False means 304. Order of RFC 9110, section 13.2.2."""
    changed = opened.stamp[1] // 10**9
    if "if-match" in headers:
        if not is_any_of(opened.etag, headers["if-match"]):
            raise Refusal(412, "PreconditionFailed", f"the ETag is {opened.etag} (If-Match)")
    elif "if-unmodified-since" in headers and changed > _seconds(headers["if-unmodified-since"]):
        raise Refusal(412, "PreconditionFailed", "it has changed (If-Unmodified-Since)")
    if "if-none-match" in headers:
        return not is_any_of(opened.etag, headers["if-none-match"])
    return "if-modified-since" not in headers or changed > _seconds(headers["if-modified-since"])


def _seconds(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        raise Refusal(400, "InvalidArgument", f"no date: {date}") from None


def _range(asked: str, size: int) -> tuple[int, int] | None:
    """Return [start, stop), or None for what is no single range and so means all, as in S3."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, stop = max(size - int(found[2]), 0), size
    else:
        start, stop = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
        if found[2] and int(found[2]) < start:
            return None
    if start >= stop:
        told = {"Content-Range": f"bytes */{size}"}
        raise Refusal(416, "InvalidRange", f"{asked} of {size:,} bytes", told)
    return start, stop


def _list(objects: Objects, request: Request, stale_seconds: float) -> Reply:
    query = request.query
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    token = query.get("continuation-token", "")
    try:
        done = base64.urlsafe_b64decode(token).decode()
        most = min(int(query.get("max-keys", _PAGE)), _PAGE)
    except ValueError:
        raise Refusal(400, "InvalidArgument", f"continuation-token {token!r} or max-keys is none") from None
    entries: list[tuple[str, Listed | None]] = []
    is_cut = False
    after = _order(query.get("start-after", ""))
    for one in objects.listing(request.bucket, prefix, stale_seconds if request.is_stale else 0.0):
        name = one.key
        listed: Listed | None = one
        if _order(name) <= after:
            continue
        if delimiter and delimiter in name[len(prefix) :]:
            name, listed = prefix + name[len(prefix) :].split(delimiter)[0] + delimiter, None
        if _order(name) <= _order(done) or (entries and entries[-1][0] == name):
            continue
        if len(entries) == most:
            is_cut = True
            break
        entries.append((name, listed))
    more = ""
    if is_cut and entries:
        more = base64.urlsafe_b64encode(_order(entries[-1][0])).decode()
    return Reply.document(200, _listing(request, entries, most, more))


def _order(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _listing(request: Request, entries: list[tuple[str, Listed | None]], most: int, more: str) -> str:
    def told(key: str) -> str:
        return quote(key, safe="/") if request.query.get("encoding-type") == "url" else escape(key, quote=False)

    lines = [
        f"<Name>{request.bucket}</Name><Prefix>{told(request.query.get('prefix', ''))}</Prefix>",
        f"<MaxKeys>{most}</MaxKeys><KeyCount>{len(entries)}</KeyCount><IsTruncated>{str(bool(more)).lower()}</IsTruncated>",
    ]
    if "delimiter" in request.query:
        lines.append(f"<Delimiter>{told(request.query['delimiter'])}</Delimiter>")
    if "encoding-type" in request.query:
        lines.append(f"<EncodingType>{escape(request.query['encoding-type'])}</EncodingType>")
    if more:
        lines.append(f"<NextContinuationToken>{more}</NextContinuationToken>")
    for name, listed in entries:
        if listed is None:
            lines.append(f"<CommonPrefixes><Prefix>{told(name)}</Prefix></CommonPrefixes>")
            continue
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(listed.changed_seconds))
        lines.append(
            f"<Contents><Key>{told(name)}</Key><LastModified>{when}</LastModified><ETag>{escape(listed.etag)}</ETag>"
            f"<Size>{listed.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    inside = "".join(lines)
    return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</ListBucketResult>'


# -- writing ---------------------------------------------------------------------------------------


def _put(objects: Objects, request: Request) -> Reply:
    if not request.key:
        objects.make_bucket(request.bucket)
        return Reply(200)
    check_content(request)
    if "x-amz-copy-source" in request.headers:
        if "uploadId" in request.query:
            raise Refusal(501, "NotImplemented", "parts cannot be copied here")
        bucket, _, key = unquote(request.headers["x-amz-copy-source"]).lstrip("/").partition("/")
        etag = objects.copy(request.bucket, request.key, (bucket, key), request.headers)
        return Reply.document(200, f"<CopyObjectResult><ETag>{escape(etag)}</ETag></CopyObjectResult>")
    if "uploadId" in request.query:
        number = request.query.get("partNumber", "")
        etag = objects.put_part(request.query["uploadId"], int(number) if number.isdecimal() else 0, request.body)
    else:
        etag = objects.put(request.bucket, request.key, request.body, request.headers)
    return Reply(200, {"ETag": etag})


def _post(objects: Objects, request: Request, can_repeat: bool) -> Reply:
    text = request.body.decode("utf-8", "replace")
    where = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key, quote=False)}</Key>"
    if "uploads" in request.query:
        name = objects.begin(request.bucket, request.key)
        inside = f"{where}<UploadId>{name}</UploadId>"
        return Reply.document(200, f"<InitiateMultipartUploadResult>{inside}</InitiateMultipartUploadResult>")
    if "uploadId" in request.query:
        parts = []
        for part in re.findall(r"<Part>(.*?)</Part>", text, re.DOTALL):
            number, etag = re.search(r"<PartNumber>(\d+)<", part), re.search(r"<ETag>([^<]*)<", part)
            if number is None or etag is None:
                raise Refusal(400, "MalformedXML", "a part has no PartNumber or no ETag")
            parts.append((int(number[1]), unescape(etag[1])))
        etag_of_all = objects.complete(request.query["uploadId"], parts, request.headers, can_repeat)
        inside = f"{where}<ETag>{escape(etag_of_all)}</ETag>"
        return Reply.document(200, f"<CompleteMultipartUploadResult>{inside}</CompleteMultipartUploadResult>")
    if "delete" in request.query:
        keys = [unescape(key) for key in re.findall(r"<Key>([^<]*)</Key>", text)]
        for key in keys:
            objects.delete(request.bucket, key)
        inside = "".join(f"<Deleted><Key>{escape(key, quote=False)}</Key></Deleted>" for key in keys)
        return Reply.document(200, f"<DeleteResult>{inside}</DeleteResult>")
    raise Refusal(501, "NotImplemented", f"POST {request.target} is not served here")
