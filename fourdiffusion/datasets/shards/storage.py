"""Read byte ranges of local files and of fsspec addresses (``s3://``, ``https://``). The only user of fsspec."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable, user_path

ATTEMPTS = 4  # of a remote read before it fails
PAUSE_S = 0.5  # before the second attempt; doubled each time


@dataclass(frozen=True)
class Member:
    """A file inside a shard: ``size`` bytes from ``offset`` on."""

    url: str  # of the shard
    offset: int
    size: int
    name: str


def is_remote(path: str) -> bool:
    """Return whether a path is an address such as s3://bucket/shards."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme.isalnum() and not os.path.exists(path)


def location(path: str) -> str:
    """Return the address as it is, or the local path with ``~`` expanded."""
    return path.rstrip("/") if is_remote(path) else str(user_path(path, "path"))


def read_members(members: Sequence[Member]) -> list[bytes]:
    """Return the content of some members, in their order. UserError names the first incomplete one."""
    if not members:
        return []
    contents = _read_remote(members) if is_remote(members[0].url) else _read_local(members)
    for member, content in zip(members, contents, strict=True):
        if len(content) != member.size:
            raise UserError(
                f"{printable(member.url)}: {member.name} has {len(content)} of {member.size} bytes: the shard is cut "
                "off, copy it again"
            )
    return contents


def read_json(url: str) -> dict[str, Any]:
    """Return the object in a JSON file at a path or an address; UserError if there is none."""
    name = printable(url)
    try:
        if is_remote(url):
            system, path = _filesystem(url)
            text = _retry(name, lambda: system.cat_file(path))
        else:
            text = Path(url).read_bytes()
        content = json.loads(text)
    except FileNotFoundError as error:
        raise UserError(f"{name}: missing; give a folder or an address that `fourdiffusion data pack` wrote") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or printable(error)[:200]})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid JSON ({printable(error)[:100]}); pack the clips again") from error
    if not isinstance(content, dict):
        raise UserError(f"{name}: holds no object; pack the clips again")
    return content


def _read_local(members: Sequence[Member]) -> list[bytes]:
    contents = {}
    try:
        for url in {member.url for member in members}:
            with open(url, "rb") as file:
                for member in sorted((m for m in members if m.url == url), key=lambda m: m.offset):
                    file.seek(member.offset)
                    contents[member] = file.read(member.size)
    except OSError as error:
        raise UserError(f"{printable(url)}: cannot be read ({error.strerror}); copy the shard again") from error
    return [contents[member] for member in members]


def _read_remote(members: Sequence[Member]) -> list[bytes]:
    """Read all ranges of one shard in one call, concurrently if the filesystem can."""
    system, path = _filesystem(members[0].url)
    starts = [member.offset for member in members]
    ends = [member.offset + member.size for member in members]
    return _retry(printable(members[0].url), lambda: system.cat_ranges([path] * len(members), starts, ends))


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        scheme = url.partition("://")[0]
        raise UserError(
            f"{printable(url)}: cannot be opened ({printable(error)[:150]}): pip install 'fourdiffusion[data]', or "
            f"copy what the {scheme} address holds to a folder"
        ) from error


def _retry(name: str, read: Any) -> Any:
    """Return the result of ``read``, with retries: a network error must not change which samples are drawn."""
    for attempt in range(ATTEMPTS):
        try:
            return read()
        except FileNotFoundError:
            raise
        except Exception as error:  # filesystems raise different types
            if attempt == ATTEMPTS - 1:
                raise UserError(f"{name}: cannot be read ({printable(error)[:200]}), tried {ATTEMPTS} times") from error
            time.sleep(PAUSE_S * 2**attempt)
