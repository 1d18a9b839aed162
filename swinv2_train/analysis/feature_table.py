"""Files of features: parts that an interrupted extraction leaves, joined to one .npz or .parquet.

The columns are `index` (number of the sample), `name`, for shards `shard` and `label`, `features`, and `stage1` to
`stage4`. An .npz holds one array for each of them, and `about`, a JSON text that describes them; `numpy.load` reads it
without pickle. In a .parquet, vectors and maps are fixed-size lists of float32, and `about` is in the metadata of the
schema under `swinv2_train`; it states the shapes of the maps, which are flat.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.config.errors import ConfigError
from swinv2_train.errors import RunError
from swinv2_train.reading import UnreadableError, parse_json
from swinv2_train.writing import write_bytes

SUFFIXES = (".npz", ".parquet")
BROKEN = "broken"
"""Array (n, 2) in a part: names and reasons of the samples that could not be used. It is not part of the table."""
METADATA = b"swinv2_train"
Columns = Mapping[str, np.ndarray]
"""Arrays by name, all with one row per sample."""


def check_table(path: Path) -> None:
    """Check that a table can be written to a path, as far as its name and the installed packages tell.

    Raises:
        ConfigError: if not.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError("", path, f"{path}: the name of the output must end in {' or '.join(SUFFIXES)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        fix = "pip install 'swinv2-train[parquet]', or write an .npz"
        raise ConfigError("", path, f"{path}: Parquet needs the package pyarrow; {fix}")
    if path.is_dir() or not path.parent.is_dir():
        wrong = f"{path} is a directory" if path.is_dir() else f"{path.parent} is not a directory"
        raise ConfigError("", path, f"{wrong}, so the features cannot be written")


def is_table(path: Path) -> bool:
    """Return whether a file is a table that `join` has written."""
    if path.suffix not in SUFFIXES:
        return False
    try:
        about = parse_json(_read_about(path))
    except (OSError, ImportError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, UnreadableError):
        return False
    return isinstance(about, dict) and "checkpoint" in about


def _read_about(path: Path) -> str:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            return str(content["about"])
    import pyarrow.parquet as pq

    return (pq.read_schema(path).metadata or {})[METADATA].decode()


def write_part(path: Path, columns: Columns, broken: Sequence[tuple[str, str]]) -> None:
    """Write some rows.

    Raises:
        OSError: if they cannot be written; then the part does not exist.
    """
    stream = io.BytesIO()
    np.savez(stream, **columns, **{BROKEN: np.array(broken, dtype=np.str_).reshape(-1, 2)})
    write_bytes(path, stream.getvalue())


def read_part(path: Path, only: str | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a part, or only one of them.

    Raises:
        RunError: if it is damaged; it is removed, so that a rerun computes it again.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in (content.files if only is None else [only])}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        path.unlink(missing_ok=True)
        raise RunError(f"{path} was damaged ({error}) and is removed; rerun the command to compute it again") from error


def join(parts: Sequence[Path], out: Path, about: Mapping[str, Any]) -> int:
    """Write the rows of all parts, in order, to one file, with one part in memory at a time. Return their number.

    The bytes of an .npz depend only on the rows and on `about`.

    Raises:
        OSError: naming `out`, if it cannot be written; an old file is then still there.
        RunError: if a part is damaged, or there is no row.
    """
    layout = _layout(parts)
    rows = next(iter(layout.values()))[1][0]
    if not rows:
        raise RunError("none of the images could be used, so there are no features")
    text = json.dumps(about, ensure_ascii=False, sort_keys=True)
    text = text.encode("utf-8", "backslashreplace").decode()  # bytes of a path that are not UTF-8 become JSON escapes
    write = _write_npz if out.suffix == ".npz" else _write_parquet
    with _replaced(out, parts[0].parent) as temporary:
        write(temporary, parts, layout, text)
    return rows


def _layout(parts: Sequence[Path]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return type and shape of every joined array."""
    layout: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    for path in parts:
        for name, array in read_part(path).items():
            if name == BROKEN:
                continue
            before = layout.get(name, (array.dtype, (0, *array.shape[1:])))
            dtype = np.promote_types(before[0], array.dtype)  # the longest of the texts
            layout[name] = dtype, (before[1][0] + len(array), *(array.shape[1:] if len(array) else before[1][1:]))
    return layout


@contextmanager
def _replaced(out: Path, place: Path) -> Iterator[Path]:
    """Yield a temporary path among the parts, which replaces `out` at the end if all went well."""
    temporary = place / f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    try:
        yield temporary
        os.replace(temporary, out)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(out)
        raise


def _write_npz(path: Path, parts: Sequence[Path], layout: Mapping[str, Any], about: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, (dtype, shape) in layout.items():
            _write_array(archive, name, dtype, shape, lambda name=name: (read_part(part, name)[name] for part in parts))
        text = np.array(about)
        _write_array(archive, "about", text.dtype, (), lambda: iter([text]))


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    pieces: Callable[[], Iterator[np.ndarray]],
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    # A fixed date: the bytes must not depend on the time.
    with archive.open(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces():
            file.write(np.ascontiguousarray(piece, dtype).tobytes())


def _write_parquet(path: Path, parts: Sequence[Path], layout: Mapping[str, Any], about: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def kind(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
        if dtype.kind == "U":
            return pa.string()
        plain = pa.from_numpy_dtype(dtype)
        return pa.list_(plain, int(np.prod(shape[1:]))) if len(shape) > 1 else plain

    def column(array: np.ndarray, wanted: Any) -> Any:
        if array.ndim == 1:
            return pa.array(array.tolist() if array.dtype.kind == "U" else array, wanted)
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), wanted.list_size)

    schema = pa.schema({name: kind(*found) for name, found in layout.items()}, {METADATA: about.encode()})
    with pq.ParquetWriter(path, schema) as writer:
        for part in parts:
            arrays = read_part(part)
            if len(arrays["name"]):
                columns = [column(arrays[name], schema.field(name).type) for name in layout]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def read_columns(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return some columns of a table that `join` has written; maps of a .parquet are flat."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in names}
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(names))
    return {name: _as_array(table[name].combine_chunks()) for name in names}


def _as_array(column: Any) -> np.ndarray:
    if hasattr(column.type, "list_size"):
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return column.to_numpy(zero_copy_only=False)
