"""Expansion of `data.shards` to a list of shards: paths, directories, patterns, URLs, lists of these."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import stat
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_train.config.paths import expanded
from swinv2_train.data.card import Card
from swinv2_train.data.errors import DataError
from swinv2_train.data.parts import filesystem
from swinv2_train.data.remote import ShardCache
from swinv2_train.data.remote_file import is_remote
from swinv2_train.data.retries import with_retries
from swinv2_train.data.tar import BLOCK
from swinv2_train.reading import is_count, parse_json

MANIFEST_SUFFIX = ".dataset.json"
_MANIFEST_FORMAT = 1
_NUMBERED = re.compile(r"^(.*)-\d+\.tar$")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")
_MAX_NAMES = 1_000_000
"""Maximum number of shards that a pattern with braces may expand to."""
_MAX_BRACES = 100


@dataclass(frozen=True)
class ListedShard:
    """A shard as described by its manifest."""

    num_samples: int
    num_bytes: int
    fingerprint: str
    """Hash of the images and options that it was made of."""
    sha256: str = ""
    """Hash of the bytes of the tar; empty if an earlier version packed it."""


@dataclass(frozen=True)
class Manifest:
    """File that the packer writes next to the shards of one split: `<split>.dataset.json`."""

    card: dict[str, Any]
    shards: dict[str, ListedShard]
    """By file name."""
    pack: dict[str, Any] = field(default_factory=dict)
    """Source of the shards and the rule that divided it; empty if an earlier version packed them."""


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """Read a manifest; its hash is checked if it has one.

    Raises:
        DataError: if the text is not a manifest, was changed, or contains impossible numbers.
    """
    try:
        content = parse_json(text)
        if content["format"] != _MANIFEST_FORMAT:
            raise DataError(f"{where} was written by another version of swinv2-data (format {content['format']})")
        card, entries = content["card"], content["shards"]
        stated = content.get("sha256")
        if stated is not None and stated != _digest(card, entries):
            raise DataError(
                f"{where} was changed after it was written (its hash differs): run swinv2-data pack again, or remove "
                "its entry sha256 if the change is meant"
            )
        Card.from_json(card)
        pack = content.get("pack", {})
        if not isinstance(pack, dict):
            raise ValueError(f"pack is {pack!r:.40}")
        return Manifest(card, {entry["name"]: _listed_shard(entry) for entry in entries}, pack)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} is damaged ({type(error).__name__}: {error}): run swinv2-data pack again") from None


def _listed_shard(entry: dict[str, Any]) -> ListedShard:
    num_samples, num_bytes = entry["num_samples"], entry["bytes"]
    # A sample has at least one header; an image without a byte of data is not packed, but is not impossible either.
    if not is_count(num_samples) or not is_count(num_bytes) or num_samples * BLOCK > max(num_bytes, BLOCK):
        raise ValueError(f"{entry['name']} cannot hold {num_samples!r} samples in {num_bytes!r} bytes")
    return ListedShard(num_samples, num_bytes, str(entry["fingerprint"]), str(entry.get("sha256", "")))


def manifest_text(manifest: Manifest) -> str:
    """Return the text of `<split>.dataset.json`, with a hash of its content."""
    shards = [
        {"name": name, "num_samples": listed.num_samples, "bytes": listed.num_bytes, "fingerprint": listed.fingerprint}
        | ({"sha256": listed.sha256} if listed.sha256 else {})
        for name, listed in manifest.shards.items()
    ]
    content = {"format": _MANIFEST_FORMAT, "card": manifest.card, "pack": manifest.pack, "shards": shards}
    return json.dumps({**content, "sha256": _digest(manifest.card, shards)}, indent=1) + "\n"


def _digest(card: Any, shards: Any) -> str:
    return hashlib.sha256(json.dumps([card, shards], sort_keys=True).encode()).hexdigest()


def manifest_place(shard: str) -> str | None:
    """Return the path of the manifest of a shard, without any query; None for a name that the packer never uses.

    Shards of one manifest have one place, although each may have its own signature.
    """
    match = _NUMBERED.match(shard.partition("?")[0])
    return f"{match.group(1)}{MANIFEST_SUFFIX}" if match else None


def manifest_url(shard: str) -> str | None:
    """Return the path or URL at which the manifest of a shard is read; None for a name that the packer never uses."""
    _, mark, query = shard.partition("?")
    place = manifest_place(shard)
    return place and f"{place}{mark}{query}"


def expand(spec: Any, cache: ShardCache, *, check: bool = True) -> list[str]:
    """Paths and URLs of the shards that `spec` names, in order.

    Args:
        check: False: do not check that a local shard exists that `spec` names by itself or by a pattern in braces. It
            spares two operations per shard if the caller opens each of them anyway.

    Raises DataError, in one sentence, if a path does not exist or a pattern or directory contains no shard.
    """
    if isinstance(spec, (list, tuple)):
        shards = [shard for part in spec for shard in expand(part, cache, check=check)]
    elif isinstance(spec, (str, Path)) and str(spec):
        shards = _expand_text(str(spec), cache, check=check)
    else:
        raise DataError(f"no shards are given (got {spec!r}): name a tar, a directory, a pattern, a URL or a list")
    if not shards:
        raise DataError(f"{spec} names no shard")
    return shards


def _expand_text(spec: str, cache: ShardCache, *, check: bool) -> list[str]:
    spec = spec.removeprefix("file://")
    if not is_remote(spec):
        spec = str(expanded(spec))
        if not check and spec.endswith(".tar") and "{" not in spec and not glob.has_magic(spec):
            return [spec]
        mode = _mode(spec)
        if mode is not None:
            return _folder(spec) if stat.S_ISDIR(mode) else [spec]
    if "{" in spec:
        import braceexpand

        _check_count(spec)
        try:
            parts = list(braceexpand.braceexpand(spec))
        except braceexpand.UnbalancedBracesError:
            raise DataError(f"{spec}: the braces do not match") from None
        if parts != [spec]:
            return [shard for part in parts for shard in _expand_text(part, cache, check=check)]
    if is_remote(spec):
        return _remote(spec, cache)
    found = sorted(path for path in glob.glob(spec) if path.endswith(".tar"))
    if not found:
        raise DataError(f"{spec} matches no shard" if glob.has_magic(spec) else f"{spec} does not exist")
    return found


def _check_count(spec: str) -> None:
    """Refuse a pattern of more names than anybody has shards, before it is expanded.

    Raises:
        DataError: naming how many they would be.
    """
    try:
        if spec.count("{") > _MAX_BRACES:
            raise DataError(f"{spec[:80]}...: more than {_MAX_BRACES} pairs of braces")
        count = _names_in(spec)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{spec[:80]}...: a range has a number of thousands of digits") from None
    if count > _MAX_NAMES:
        raise DataError(
            f"{spec} expands to {count:,} shards, more than the limit of {_MAX_NAMES:,}: correct the range, or name a "
            "directory or a pattern with *"
        )


def _names_in(pattern: str) -> int:
    """Return the number of names that braceexpand creates from a pattern; unmatched braces are left to it."""
    count = 1
    for expression in _groups(pattern):
        numbers = _RANGE.fullmatch(expression)
        letters = _LETTERS.fullmatch(expression)
        if numbers:
            first, last, step = (int(text or 1) for text in numbers.groups())
            count *= abs(last - first) // (step or 1) + 1
        elif letters:
            count *= len(string.ascii_letters)
        else:
            parts = _split(expression)
            count *= sum(map(_names_in, parts)) if len(parts) > 1 else _names_in(expression)
    return count


def _groups(pattern: str) -> list[str]:
    """Return the text inside each outermost pair of braces."""
    found, depth, start = [], 0, 0
    for position, sign in _unescaped(pattern):
        if sign == "{":
            depth += 1
            start = position + 1 if depth == 1 else start
        elif sign == "}":
            depth -= 1
            if depth == 0:
                found.append(pattern[start:position])
    return found


def _split(expression: str) -> list[str]:
    """Return the parts between commas that are not inside further braces."""
    parts, depth, start = [], 0, 0
    for position, sign in _unescaped(expression):
        depth += (sign == "{") - (sign == "}")
        if sign == "," and depth == 0:
            parts.append(expression[start:position])
            start = position + 1
    return [*parts, expression[start:]]


def _unescaped(text: str) -> Iterator[tuple[int, str]]:
    """Return the characters of a text with their positions, without escaped ones."""
    escaped = False
    for position, sign in enumerate(text):
        if not escaped and sign != "\\":
            yield position, sign
        escaped = sign == "\\" and not escaped


def _mode(path: str) -> int | None:
    """Return the mode of a file or folder; None if it does not exist, or if its name is too long for a path."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return None


def _folder(path: str) -> list[str]:
    names = sorted(os.listdir(path))
    found = [str(Path(path, name)) for name in names if name.endswith(".tar") and not name.startswith(".")]
    if not found:
        raise DataError(f"{path} is a directory without shards (*.tar); to make some: swinv2-data pack")
    manifests = [Path(path, name) for name in names if name.endswith(MANIFEST_SUFFIX)]
    _refuse_mixed_splits(path, [manifest.name for manifest in manifests])
    for manifest in manifests:
        missing = set(parse_manifest(manifest.read_bytes(), str(manifest)).shards) - {
            Path(shard).name for shard in found
        }
        if missing:
            raise DataError(f"{path}: {len(missing)} shards of {manifest.name} are missing, {min(missing)} among them")
    return found


def _remote(url: str, cache: ShardCache) -> list[str]:
    """Return a tar, a pattern, or a directory on a server; a directory requires a server that can list."""
    if url.split("?", 1)[0].endswith(".tar") and not glob.has_magic(url.split("?", 1)[0]):
        return [url]
    pattern = url if glob.has_magic(url) else f"{url.rstrip('/')}/*"

    def listing() -> list[str]:
        fs, path = filesystem(pattern)
        return sorted(fs.unstrip_protocol(name) for name in fs.glob(path))

    found = with_retries(url, listing, retries=cache.retries, backoff=cache.backoff)
    if not glob.has_magic(url):
        _refuse_mixed_splits(url, [name.rpartition("/")[2] for name in found if name.endswith(MANIFEST_SUFFIX)])
    shards = [name for name in found if name.endswith(".tar")]
    if not shards:
        raise DataError(f"{url}: no shard (*.tar) is listed there")
    return shards


def _refuse_mixed_splits(where: str, manifests: list[str]) -> None:
    if len(manifests) > 1:
        splits = [name.removesuffix(MANIFEST_SUFFIX) for name in manifests]
        raise DataError(f"{where} holds the splits {', '.join(splits)}: name one, such as {where}/{splits[0]}-*.tar")
