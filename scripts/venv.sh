# Sourced by the other scripts, from the repository's root: a .venv with the packages of a
# requirements file. A .venv that already has them is used as it is.
#   prepare_venv REQUIREMENTS MODULE...   sets $python; the modules are what must import

prepare_venv() {
    local requirements=$1 base=${PYTHON:-python3}
    shift
    python=.venv/bin/python
    if venv_is_good "$@"; then
        return
    fi
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "error: $base is not Python 3.10 or newer; name one with PYTHON=/path/to/python3" >&2
        return 2
    fi
    if ! same_version "$base"; then
        "$base" -m venv --clear .venv
    fi
    echo "installing $requirements into .venv (about 5 GB with CUDA, a few minutes)"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
    venv_is_good "$@" || { echo "error: .venv misses one of: $*; remove it and retry" >&2; return 1; }
}

# does .venv exist, and was it made by the interpreter asked for?
same_version() {
    local version='import sys; print(sys.version)'
    [ -x .venv/bin/python ] && [ "$(.venv/bin/python -c "$version")" = "$("$1" -c "$version")" ]
}

venv_is_good() {
    if [ -n "${PYTHON:-}" ] && ! same_version "$PYTHON"; then
        return 1
    fi
    [ -x .venv/bin/python ] && .venv/bin/python - "$@" 2>/dev/null <<'PY'
import importlib.util
import sys
from importlib.metadata import version

torch = tuple(map(int, version("torch").split("+")[0].split(".")[:2]))
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
sys.exit(bool(missing) or torch < (2, 10))
PY
}
