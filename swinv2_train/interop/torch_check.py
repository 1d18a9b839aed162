"""Comparison of the claims of a `torch.save` file with its data, before torch reads it.

torch maps the members of its archives into memory and trusts the pickle: a tensor that claims more elements than its
member has gets the bytes of the next one, and a compressed member is read as noise; both load without an error. This
module reads the pickle without executing anything in it, and records only the storages and tensors it names.
Torch-free.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.reading import is_count

_WIDTHS = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "UntypedStorage": 1,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4,
}  # fmt: skip
"""Bytes per element of a storage; a pickle counts an untyped one in bytes."""
_LARGEST_PICKLE = 1 << 28
"""Limit in bytes; the pickle of a model of any size needs about 100 bytes per tensor."""
_LOCAL_HEADER = 30
"""Size in bytes of the fixed part of the header before a member of a zip archive."""
_OLD_MAGIC = 0x1950A86A20F9469CFC6C


class Placeholder(dict):
    """Replacement of an object whose class is not loaded; keeps the plain data it was given and does nothing."""

    is_module = False
    """True if it replaces a model of torch."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Ignore the state, except for its kind."""
        self.is_module = isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        return Placeholder()

    def append(self, _: Any) -> None:
        """Ignore an element of a list."""

    def extend(self, _: Any) -> None:
        """Ignore elements of a list."""


class _Storage(Placeholder):
    """A storage as the pickle claims it."""

    def __init__(self, key: str, kind: str, count: int) -> None:
        super().__init__()
        self.key, self.kind, self.count = key, kind, count


# The unpickler in Python, not the one in C: its memo is a dictionary, so a damaged index cannot allocate gigabytes.
class _Reader(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Unpickles placeholders, and records the storages that a pickle names and the parts of them that tensors use.

    Raises:
        ValueError: if a tensor extends beyond its storage, or if a storage is described in two ways.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild_tensor"):
            return _tensor
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return lambda data, *_: data
        return type(name, (Placeholder,), {})

    def persistent_load(self, identifier: Any) -> Any:
        if isinstance(identifier, tuple) and len(identifier) > 1 and identifier[0] in ("module", b"module"):
            return identifier[1]  # the class of a module, in files of the old format
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] not in ("storage", b"storage"):
            return Placeholder()
        kind, key, _, count = identifier[1:5]
        name = getattr(kind, "__name__", str(kind))
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"a storage of {count!r} elements")
        storage = _Storage(str(key), name, count)
        known = self.storages.setdefault(storage.key, storage)
        if (known.kind, known.count) != (name, count):
            raise ValueError(f"storage {key} has {known.count} elements of {known.kind} in one place and {count} of "
                             f"{name} in another")  # fmt: skip
        return storage


def _tensor(storage: Any, offset: Any = 0, size: Any = (), stride: Any = (), *_: Any) -> Placeholder:
    """Check that a tensor is inside its storage."""
    if isinstance(storage, _Storage):
        shapes = (size, stride)
        if not all(isinstance(sides, tuple) and all(is_count(side) for side in sides) for sides in shapes):
            raise ValueError(f"a tensor of size {size!r} and stride {stride!r}")
        if not is_count(offset) or len(size) != len(stride):
            raise ValueError(f"a tensor of size {size!r} and stride {stride!r} at {offset!r}")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if 0 not in size and last >= storage.count:
            raise ValueError(
                f"a tensor of size {_shown(size)} reaches element {last} of storage {storage.key}, which has "
                f"{storage.count}"
            )
    return Placeholder()


def _shown(size: Sequence[int]) -> str:
    return "x".join(map(str, size)) if len(size) <= 8 else f"of {len(size)} dimensions"


def check_file(path: Path) -> bool:
    """Compare the claims of a file's pickle with its data.

    Returns:
        True if the file may be mapped into memory: it is an archive with uncompressed members.

    Raises:
        CheckpointError: if it is cut off, contradicts itself, or is not a file of weights.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                file.seek(0)
                _check_old_format(file)
                return False
            return _check_archive(path, file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{path} is cut off or damaged ({error}); copy or download it again") from error
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken pickle makes of the unpickler
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, KeyError):  # of the unpickler's table of opcodes: the text is nothing but a number
            reason = f"its pickle has the unknown opcode {reason}"
        raise CheckpointError(f"{path} is broken or not a file of weights: {reason}") from error


def _check_archive(path: Path, file: BinaryIO) -> bool:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(f"{path} is a TorchScript program, not a file of weights")
        pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            raise CheckpointError(f"{path} is a zip archive without weights in it")
        if len(pickles) > 1 or len(set(names)) < len(names):
            twice = next((name for name in names if names.count(name) > 1), "data.pkl")
            raise CheckpointError(f"{path} is broken: it holds {twice} twice")
        _check_places(path, file, members, archive.start_dir)
        if pickles[0].file_size > _LARGEST_PICKLE:
            raise CheckpointError(f"{path} is broken: its pickle would take {pickles[0].file_size} bytes")
        reader = _Reader(io.BytesIO(archive.read(pickles[0])))
        reader.load()
    top = pickles[0].filename.removesuffix("data.pkl")
    sizes = {member.filename: member.file_size for member in members}
    for key, storage in reader.storages.items():
        _check_storage(path, sizes.get(f"{top}data/{key}"), storage)
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _check_places(path: Path, file: BinaryIO, members: Sequence[zipfile.ZipInfo], directory: int) -> None:
    """Reject members that overlap each other or the directory of the archive."""
    end, before = 0, ""
    for member in sorted(members, key=lambda member: member.header_offset):
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"{path} is cut off or damaged: {member.filename} is not where the directory says")
        if member.header_offset < end:
            raise CheckpointError(f"{path} is broken: {member.filename} lies inside {before}")
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        end, before = member.header_offset + _LOCAL_HEADER + names + member.compress_size, member.filename
        if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            raise CheckpointError(f"{path} is broken: {member.filename} has two sizes")
    if end > directory:
        raise CheckpointError(f"{path} is cut off or damaged: {before} ends at byte {end}, after {directory}")


def _check_storage(path: Path, size: int | None, storage: _Storage) -> None:
    if size is None:
        raise CheckpointError(f"{path} is broken: it lacks the data of storage {storage.key}")
    width = _WIDTHS.get(storage.kind)
    if width is None:
        raise CheckpointError(f"{path} holds a {storage.kind}, which this package does not read")
    if size != width * storage.count:
        raise CheckpointError(
            f"{path} is broken: storage {storage.key} has {size} bytes, and its {storage.count} elements of "
            f"{storage.kind} need {width * storage.count}"
        )


def _check_old_format(file: BinaryIO) -> None:
    """Check the old format: three pickles about the file, one of the content, and one of the keys of its storages;
    then, for each storage, the number of its elements (8 bytes) and its data.

    Raises:
        ValueError: if it is broken.
    """
    if _Reader(file).load() != _OLD_MAGIC:
        raise ValueError("it does not begin like a file of torch.save")
    for _ in range(2):
        _Reader(file).load()
    reader = _Reader(file)
    reader.load()
    keys = [str(key) for key in _Reader(file).load()]
    if sorted(keys) != sorted(reader.storages):
        raise ValueError("its lists of storages differ")
    begin, size = file.tell(), file.seek(0, io.SEEK_END)
    needed = sum(8 + _width(storage) * storage.count for storage in reader.storages.values())
    if size != begin + needed:
        raise ValueError(f"its storages need {needed} bytes, and it has {size - begin}")


def _width(storage: _Storage) -> int:
    if storage.kind not in _WIDTHS:
        raise ValueError(f"it holds a {storage.kind}, which this package does not read")
    return _WIDTHS[storage.kind]
