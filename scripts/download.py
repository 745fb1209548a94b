# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Fetching a large file: continues where a lost connection ended, and a file is there whole and verified or not at all.

Bytes are stored and hashed; nothing in them is ever read as anything else.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from .errors import InputError

CHUNK = 2**20  # bytes read at once
TIMEOUT = 60.0  # seconds without a byte after which a connection counts as lost
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers of servers that may be different next time


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    attempts: int = 5,
    wait: float = 2.0,
    progress: bool = False,
) -> str:
    """Fetch `url` into the file `target`; a part left by an earlier call, `target` + ".part", is continued.

    Args:
        url: http or https.
        target: file to write; its folder is made.
        size: bytes expected, if known; sha256: expected hash, if known.
        attempts: connections tried without getting any further; wait: seconds before the second, doubled each time.
        progress: show a bar on standard error.

    Returns:
        the file's SHA-256.

    Raises:
        InputError: the address is wrong or refused, the connection is lost for good (the part is kept), or what came is
            not what was expected (the part is removed).
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"url: {url} cannot be fetched; expected an address that begins with https://")
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _size(part)
        try:
            total = _continue(url, part, progress)
            break
        except (URLError, HTTPException, OSError) as error:
            if isinstance(error, HTTPError) and error.code not in PASSING:
                raise InputError(
                    f"url: {url} was refused ({error.code} {error.reason}); look for a new address"
                ) from error
            failures = 0 if _size(part) > before else failures + 1
            if failures >= attempts:
                raise InputError(
                    f"url: the connection to {url} was lost after {_size(part)} bytes ({error}); call again to continue"
                ) from error
            time.sleep(wait * 2 ** max(0, failures - 1))
    _check_size(part, url, size or total)
    found = sha256_of(part)
    if sha256 and found != sha256.lower():
        part.unlink()
        raise InputError(f"url: {url} sent a file with SHA-256 {found}, expected {sha256}; it was removed")
    part.replace(target)
    return found


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _check_size(part: Path, url: str, size: int | None) -> None:
    found = _size(part)
    if size is not None and found != size:
        part.unlink()
        raise InputError(f"url: {url} sent {found} bytes, expected {size}; the file was removed")


def _continue(url: str, part: Path, progress: bool) -> int | None:
    """Append what is missing; the size of the whole if the server tells."""
    have = _size(part)
    headers = {"User-Agent": "PromptReg", "Accept-Encoding": "identity"}
    try:
        answer = urlopen(Request(url, headers=headers | ({"Range": f"bytes={have}-"} if have else {})), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and have:  # nothing lies behind what is there
            whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if whole and int(whole[1]) == have:
                return have
            part.unlink()
            raise ConnectionError("the part kept was longer than the file") from error
        raise
    with answer:
        begin, total = _extent(answer, have)
        with (
            part.open("ab" if begin else "wb") as file,
            tqdm(total=total, initial=begin, unit="B", unit_scale=True, disable=not progress, file=sys.stderr) as bar,
        ):
            _copy(answer.read, file.write, bar.update)
    if total is not None and _size(part) < total:
        raise ConnectionError(f"{_size(part)} of {total} bytes came")
    return total


def _extent(answer: HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the answer begins in the file, and the size of the whole."""
    ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    if answer.status == 206 and ranged and int(ranged[1]) == have:
        return have, int(ranged[2])
    length = answer.headers.get("Content-Length")  # a server that knows no ranges sends the whole again
    return 0, int(length) if length and length.isdigit() else None


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], object], count: Callable[[int], object]) -> None:
    while chunk := read(CHUNK):
        write(chunk)
        count(len(chunk))
