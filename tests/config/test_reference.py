"""The reference of all config keys says what the schema says."""

from __future__ import annotations

import runpy
from pathlib import Path

from swinv2_train.config.explain import schema_keys

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_the_schema() -> None:
    """Update it with: python scripts/config_reference.py > conf/REFERENCE.md"""
    made = runpy.run_path(str(ROOT / "scripts" / "config_reference.py"))["reference"]()
    assert (ROOT / "conf" / "REFERENCE.md").read_text() == made


def test_every_key_has_a_line() -> None:
    text = (ROOT / "conf" / "REFERENCE.md").read_text()
    sections = {key.rpartition(".")[0] for key in schema_keys()}
    missing = [key for key in schema_keys() if key not in sections and f"| `{key}` |" not in text]
    assert missing == []
