"""Statistics of stored values: exact, and the same for any order and any parts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from swinv2_train.data.value_stats import MOST_BINS, ChannelValues, Histogram, ValueStats

RNG = np.random.default_rng(0)
DISTRIBUTIONS = {
    "temperatures": (280 + 12 * RNG.standard_normal((60, 500))).astype(np.float32),
    "backscatter": np.exp(3 * RNG.standard_normal((60, 500))).astype(np.float32),
    "both signs": (RNG.standard_normal((60, 500)) ** 3 - 0.2).astype(np.float64),
    "integers": RNG.integers(-500, 500, (60, 500)).astype(np.int16),
    "reflectances": RNG.integers(0, 11_000, (60, 500), dtype=np.uint16),
    "large": RNG.integers(0, 2**32, (60, 500), dtype=np.uint32),
    "constant": np.full((60, 500), -7.25, np.float32),
    "outliers": np.where(RNG.random((60, 500)) < 1e-3, 3e38, RNG.random((60, 500))).astype(np.float32),
}


def measured(values: np.ndarray, missing: np.ndarray | None = None) -> ChannelValues:
    return ChannelValues.of(values, np.zeros(values.shape, bool) if missing is None else missing)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_statistics_are_those_of_all_values_in_any_parts(name: str) -> None:
    values = DISTRIBUTIONS[name]
    whole, parts, backwards = measured(values), ChannelValues(), ChannelValues()
    for row in values.reshape(12, 5, 500):
        parts.add(measured(row))
    for row in values[::-1, None]:
        backwards.add(measured(row))
    exact = values.astype(np.float64)
    assert (Histogram.of(exact.astype(np.float32)).keys == whole.histogram.keys).all()
    for found in (whole, parts, backwards):
        assert (found.count, found.low, found.high) == (30_000, exact.min(), exact.max())
        assert found.mean == pytest.approx(exact.mean(), rel=1e-12, abs=1e-12)
        assert found.std == pytest.approx(exact.std(), rel=1e-12)
        assert found.histogram.shift == whole.histogram.shift
        assert (found.histogram.keys == whole.histogram.keys).all()
        assert (found.histogram.counts == whole.histogram.counts).all()
        assert found.histogram.counts.sum() == 30_000
    low, high = whole.histogram.edges()
    ordered = np.sort(exact.ravel())
    assert len(low) <= MOST_BINS
    for percent in (0, 1, 2, 25, 50, 98, 99, 100):
        true = np.percentile(ordered, percent)
        near = np.searchsorted(low, np.float32(true), side="right") - 1
        width = high[max(near, 0)] - low[max(near, 0)]
        assert whole.percentile(percent) == pytest.approx(true, abs=width + 1e-6 * abs(true))


def test_percentiles_of_few_different_values_are_exact() -> None:
    values = DISTRIBUTIONS["integers"]
    found = measured(values)
    assert found.histogram.shift == 0
    for percent in np.linspace(0, 100, 77):
        assert found.percentile(percent) == pytest.approx(np.percentile(values, percent), abs=1e-9)


def test_scaled_and_clipped_statistics_are_those_of_the_scaled_values() -> None:
    for name, limits, error in (
        ("integers", (-100.5, 250.0), 1e-12),  # single values: exact even where they are clipped
        ("temperatures", (0.0, 1000.0), 1e-12),  # nothing is clipped
        ("temperatures", (270.0, 290.0), 2e-3),
        ("backscatter", (0.05, 20.0), 2e-3),
    ):
        unit = np.clip((DISTRIBUTIONS[name].astype(np.float64) - limits[0]) / (limits[1] - limits[0]), 0, 1)
        assert measured(DISTRIBUTIONS[name]).scaled(*limits) == pytest.approx((unit.mean(), unit.std()), abs=error)


def test_pixels_without_data_do_not_count_and_are_counted() -> None:
    planes = np.stack([DISTRIBUTIONS["temperatures"], DISTRIBUTIONS["backscatter"]])
    missing = np.zeros(planes.shape, bool)
    missing[0, :7] = missing[1, :, 0] = True
    planes[missing] = np.nan
    stats = ValueStats.of(planes, missing, "float32")
    stats.add(ValueStats.of(planes[:, 30:], np.zeros_like(missing[:, 30:]) | np.isnan(planes[:, 30:]), "float16"))
    assert (stats.images, stats.incomplete, stats.types) == (2, 2, {"float32": 1, "float16": 1})
    for number, channel in enumerate(stats.channels):
        seen = np.concatenate([planes[number].ravel(), planes[number, 30:].ravel()]).astype(np.float64)
        assert channel.missing == np.isnan(seen).sum() > 0
        assert (channel.mean, channel.std) == pytest.approx((np.nanmean(seen), np.nanstd(seen)), rel=1e-12)
    again = ValueStats.from_json(json.loads(json.dumps(stats.to_json())))
    assert again.to_json() == stats.to_json()
    assert again.channels[1].percentile(50) == stats.channels[1].percentile(50)
    rows = dict(stats.rows())
    assert rows["stored values, 2 channels"] == "float16: 1, float32: 1"
    assert rows["  without data"].startswith("3,590 values (3.99%) in 2 images")


def test_damaged_numbers_are_rejected() -> None:
    good = measured(DISTRIBUTIONS["integers"]).to_json()
    wrong = (
        {"count": 1},
        {"missing": -1},
        {"mean": float("nan")},
        {"low": 3.0, "high": 2.0},
        {"histogram": {**good["histogram"], "shift": 40}},
        {"histogram": {**good["histogram"], "keys": [1]}},
        {"histogram": {**good["histogram"], "keys": good["histogram"]["keys"][::-1]}},
    )
    for change in wrong:
        with pytest.raises(ValueError, match="contradict"):
            ChannelValues.from_json({**good, **change})
    assert len(Histogram.of(np.zeros(0, np.float32)).keys) == 0
