#!/usr/bin/env bash
# Run a part of the test suite with other package versions than those of constraints.txt:
#   scripts/versions.sh lowest        the lowest versions that pyproject.toml allows, on Python 3.11
#   scripts/versions.sh torch-2.11    torch 2.11 on Python 3.12, otherwise the versions of constraints.txt
# Other arguments go to pytest and replace the selection below. The environment (about 7 GB) is created in
# ${TMPDIR:-/tmp}/swinv2-versions-MODE, or in $SWINV2_VERSIONS_VENV, and kept for the next call. PYTHON sets the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    echo "scripts/versions.sh: $1" >&2
    exit 2
}

mode=${1:-}
case "$mode" in
    lowest) python=3.11 wanted=(--resolution lowest-direct -e '.[dev]') ;;
    torch-2.11) python=3.12 wanted=(-e '.[dev]' 'torch==2.11.*' 'torchvision==0.26.*') ;;
    *) die "use one of lowest, torch-2.11" ;;
esac
shift
venv=${SWINV2_VERSIONS_VENV:-${TMPDIR:-/tmp}/swinv2-versions-$mode}
command -v uv >/dev/null || die "needs uv: pip install uv"

runs_version() {
    "$1" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$python')" 2>/dev/null
}

find_python() {
    local name
    for name in "${PYTHON:-}" "python$python" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$python".*/bin/python; do
        if [ -n "$name" ] && runs_version "$name"; then
            echo "$name"
            return
        fi
    done
    # uv can download one if there is a network.
    uv python install --quiet "$python" 2>/dev/null && uv python find --managed-python "$python" 2>/dev/null
}

if ! runs_version "$venv/bin/python"; then
    interpreter=$(find_python) || die "Python $python is not installed, and uv cannot download it; set PYTHON=/path/to/python$python"
    uv venv --quiet --clear --python "$interpreter" "$venv"
fi
if [ "$mode" = torch-2.11 ]; then
    # torch determines the versions of these packages.
    grep -vE '^(torch|torchvision|triton|setuptools|nvidia-|cuda-)' constraints.txt >"$venv/constraints.txt"
    wanted+=(-c "$venv/constraints.txt")
fi
echo "versions: installing $mode into $venv"
uv pip install --quiet --python "$venv/bin/python" "${wanted[@]}"
export PATH="$venv/bin:$PATH" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || export DS_ACCELERATOR=cpu
python -c '
import sys, tomllib
from importlib.metadata import version
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
names = [line.split(">")[0].split("<")[0] for line in project["dependencies"]]
print("versions: Python", sys.version.split()[0] + ",", ", ".join(f"{name} {version(name)}" for name in names))'
# The tests that depend most on other packages: models and torch.compile, other libraries, files, loaders, console, a run.
[ $# -gt 0 ] || set -- tests/models tests/interop tests/tracking tests/tasks tests/config/test_compose.py \
    tests/checkpoint/test_save.py tests/data/test_decode.py tests/data/test_loader.py tests/data/test_pack.py \
    tests/data/test_remote.py tests/data/test_video.py tests/engine/test_run.py tests/engine/test_reduction.py tests/sweep/test_call.py
exec python -m pytest "$@"
