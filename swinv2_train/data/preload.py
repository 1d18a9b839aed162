"""The imports of a data worker, made once by the server that workers are forked from."""

from __future__ import annotations

from swinv2_train.imports import lean_imports

# Workers share the memory of these modules until they write to it, and a collection would write to every object.
with lean_imports():
    import swinv2_train.data.augment
    import swinv2_train.data.loader  # noqa: F401
