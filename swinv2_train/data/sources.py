"""From what a person writes (`data.shards`) to a list of shards: paths, directories, patterns, URLs, lists of these."""

from __future__ import annotations

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2_train.data.errors import DataError
from swinv2_train.data.remote import ShardCache, filesystem, is_remote, with_retries

MANIFEST_SUFFIX = ".dataset.json"
_MANIFEST_FORMAT = 1
_NUMBERED = re.compile(r"^(.*)-\d+\.tar$")


@dataclass(frozen=True)
class ListedShard:
    """A shard as its manifest describes it."""

    num_samples: int
    num_bytes: int
    fingerprint: str
    """Of the images and options that it was made of."""


@dataclass(frozen=True)
class Manifest:
    """What the packer writes beside the shards of one split: `<split>.dataset.json`."""

    card: dict[str, Any]
    shards: dict[str, ListedShard]
    """By file name."""


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """Raises DataError where the text is no manifest."""
    try:
        content = json.loads(text)
        if content["format"] != _MANIFEST_FORMAT:
            raise DataError(f"{where} was written by another version of swinv2-data (format {content['format']})")
        shards = {
            entry["name"]: ListedShard(int(entry["num_samples"]), int(entry["bytes"]), str(entry["fingerprint"]))
            for entry in content["shards"]
        }
        return Manifest(content["card"], shards)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} is damaged ({type(error).__name__}: {error}): run swinv2-data pack again") from None


def manifest_text(manifest: Manifest) -> str:
    shards = [
        {"name": name, "num_samples": listed.num_samples, "bytes": listed.num_bytes, "fingerprint": listed.fingerprint}
        for name, listed in manifest.shards.items()
    ]
    return json.dumps({"format": _MANIFEST_FORMAT, "card": manifest.card, "shards": shards}, indent=1) + "\n"


def manifest_url(shard: str) -> str | None:
    """Where the manifest of a shard would lie; None for a name that the packer does not give."""
    path, mark, query = shard.partition("?")
    match = _NUMBERED.match(path)
    return f"{match.group(1)}{MANIFEST_SUFFIX}{mark}{query}" if match else None


def expand(spec: Any, cache: ShardCache) -> list[str]:
    """Paths and URLs of the shards that `spec` names, in order.

    Raises DataError, in one sentence, where a path does not exist or a pattern or directory holds no shard.
    """
    if isinstance(spec, (list, tuple)):
        shards = [shard for part in spec for shard in expand(part, cache)]
    elif isinstance(spec, (str, Path)) and str(spec):
        shards = _expand_text(str(spec), cache)
    else:
        raise DataError(f"no shards are given (got {spec!r}): name a tar, a directory, a pattern, a URL or a list")
    if not shards:
        raise DataError(f"{spec} names no shard")
    return shards


def _expand_text(spec: str, cache: ShardCache) -> list[str]:
    spec = spec.removeprefix("file://")
    if not is_remote(spec):
        spec = str(Path(spec).expanduser())
        if Path(spec).exists():
            return _local(spec)
    if "{" in spec:
        import braceexpand

        try:
            parts = list(braceexpand.braceexpand(spec))
        except braceexpand.UnbalancedBracesError:
            raise DataError(f"{spec}: the braces do not match") from None
        if parts != [spec]:
            return [shard for part in parts for shard in _expand_text(part, cache)]
    if is_remote(spec):
        return _remote(spec, cache)
    found = sorted(path for path in glob.glob(spec) if path.endswith(".tar"))
    if not found:
        raise DataError(f"{spec} matches no shard" if glob.has_magic(spec) else f"{spec} does not exist")
    return found


def _local(path: str) -> list[str]:
    if not Path(path).is_dir():
        return [path]
    found = sorted(str(entry) for entry in Path(path).glob("*.tar") if not entry.name.startswith("."))
    if not found:
        raise DataError(f"{path} is a directory without shards (*.tar); to make some: swinv2-data pack")
    manifests = sorted(Path(path).glob(f"*{MANIFEST_SUFFIX}"))
    _refuse_mixed_splits(path, [manifest.name for manifest in manifests])
    for manifest in manifests:
        missing = set(parse_manifest(manifest.read_bytes(), str(manifest)).shards) - {
            Path(shard).name for shard in found
        }
        if missing:
            raise DataError(f"{path}: {len(missing)} shards of {manifest.name} are missing, {min(missing)} among them")
    return found


def _remote(url: str, cache: ShardCache) -> list[str]:
    """A tar, a pattern or a directory on a server; a directory needs a server that can list."""
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
