"""Decode thousands of damaged images per format, and count what happens.

    python scripts/bench/fuzz_images.py --count 2000 --out scripts/bench/results/fuzz-images.json

Each image is decoded as in training, in a child process. Outcomes: decoded (damage that the format cannot detect),
refused with a one-line message, traceback (any other exception), crash (the process died), hang (over --seconds of CPU
time), and large (over --memory MiB more than before). The last four fail the benchmark. The same --seed makes the
same files.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import torch  # noqa: E402
from report import write_report  # noqa: E402

from swinv2_train.data.decode import decode  # noqa: E402
from swinv2_train.data.errors import BrokenSample  # noqa: E402
from tests.data.damaged_images import FORMATS, damaged, intact  # noqa: E402

BAD = ("traceback", "crash", "hang", "large")
_CODES = {b"d": "decoded", b"r": "refused", b"t": "traceback", b"l": "large"}
_LISTED = 5


def outcome(data: bytes, most_mib: int) -> bytes:
    """Decode one file in this process; return a key of `_CODES`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decode(data)
        code = b"d"
    except BrokenSample as error:
        code = b"r" if "\n" not in error.reason and 0 < len(error.reason) < 500 else b"t"
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = b"t"
    return b"l" if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > most_mib << 10 else code


def run(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Decode all files of a format; a new child process continues after each one that died."""
    counts: Counter[str] = Counter()
    bad: list[str] = []
    number = peak = 0
    while number < options.count:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _child(kind, range(number, options.count), writer, options)
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as codes:
            while code := codes.read(1):
                counts[_CODES[code]] += 1
                if _CODES[code] in BAD:
                    bad.append(f"{_CODES[code]}: {number}")
                number += 1
        _, status, usage = os.wait4(child, 0)
        peak = max(peak, usage.ru_maxrss >> 10)
        if os.WIFSIGNALED(status):
            died = "hang" if os.WTERMSIG(status) == signal.SIGPROF else "crash"
            counts[died] += 1
            bad.append(f"{died}: {number} (signal {os.WTERMSIG(status)})")
            number += 1
    names = ("decoded", "refused", *BAD)
    return {"format": kind} | {name: counts[name] for name in names} | {"peak_mib": peak, "bad": bad[:_LISTED]}


def _child(kind: str, numbers: range, writer: int, options: argparse.Namespace) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print warnings about damaged files
    if not options.verbose:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, options.seconds)
        os.write(writer, outcome(damaged(kind, number, options.seed), options.memory))
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="damaged files per format (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--seconds", type=int, default=60, help="longest CPU time for one file (default: %(default)s)")
    parser.add_argument(
        "--memory", type=int, default=4096, metavar="MIB", help="most for one file (default: %(default)s)"
    )
    parser.add_argument("--verbose", action="store_true", help="show what libraries print, and tracebacks")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for kind in options.formats:
        for data in intact(kind):
            decode(data)  # the undamaged files must decode, and the libraries are loaded before the fork
        results.append(run(kind, options))
        numbers = "  ".join(f"{name} {results[-1][name]:,}" for name in ("decoded", "refused", *BAD))
        print(f"{kind:<20}{numbers}  peak {results[-1]['peak_mib']:,} MiB  {' '.join(results[-1]['bad'])}", flush=True)
    packages = ("torchvision", "pillow", "imagecodecs", "tifffile")
    write_report(options.out, packages, count=options.count, seed=options.seed, results=results)
    return 1 if any(result[name] for result in results for name in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
