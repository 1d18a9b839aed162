#!/usr/bin/env bash
# Create the project's environment in .venv, or reuse it. demo.sh and test.sh source this file; it can also be run alone.
# It uses uv if available (half a minute to two minutes), otherwise venv and pip (a few minutes). Versions: constraints.txt.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${SWINV2_VENV:-$ROOT/.venv}

find_python() {
    local name
    for name in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "scripts/env.sh: needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2
    return 1
}

make_environment() {
    local python stamp
    # The installed packages depend on these files; the stamp records the version that the environment was created from.
    stamp=$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum)
    if [ "$(cat "$VENV/.swinv2-stamp" 2>/dev/null)" = "$stamp" ]; then
        echo "environment: $VENV (up to date)"
        return
    fi
    python=$(find_python)
    echo "environment: installing into $VENV (about 6 GB, once)"
    local uv=uv
    if command -v uv >/dev/null; then
        [ -x "$VENV/bin/python" ] || uv venv --quiet --seed --python "$(command -v "$python")" "$VENV"
    else
        # An interrupted venv can leave a python without pip.
        "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$VENV"
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv 2>/dev/null || uv=
        uv=${uv:+$VENV/bin/uv}
    fi
    if [ -n "$uv" ]; then
        (cd "$ROOT" && "$uv" pip install --quiet --compile-bytecode --python "$VENV/bin/python" -c constraints.txt -e '.[dev]')
    else
        echo "environment: uv is not available, using pip"
        (cd "$ROOT" && "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]')
    fi
    echo "$stamp" >"$VENV/.swinv2-stamp"
    echo "environment: ready"
}

make_environment
export PATH="$VENV/bin:$PATH"
