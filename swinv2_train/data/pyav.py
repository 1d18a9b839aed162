"""Import of PyAV, the package that decodes and encodes videos. It contains FFmpeg, so only videos import it."""

from __future__ import annotations

from typing import Any

from swinv2_train.data.errors import DataError


def load_av() -> Any:
    """Import the package `av` and return it.

    Commands on videos call it before they start, because data workers and the packer would fail sample by sample.

    Raises:
        DataError: with the remedy, if it is not installed or cannot be imported.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        if error.name == "av":
            raise DataError("videos are read by the package av, which is not installed: pip install av") from None
        raise _broken(error) from None
    except ImportError as error:
        raise _broken(error) from None
    return av


def _broken(error: ImportError) -> DataError:
    hint = "pip install --force-reinstall av"
    return DataError(f"videos are read by the package av, which cannot be imported ({error}): {hint}")
