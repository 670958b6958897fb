# What the recipes share; they source it. It goes to the root of the repository.

called_from=$PWD
called=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
workers=(--workers "${WORKERS:-0}")
failed=0 # what the recipe ends with

step() { # runs a module; when some scans fail (1) the others go on, a mistake (2) ends it
    local code=0
    "$python" -m "$@" || code=$?
    ((code < 2)) || exit "$code"
    ((code == 0)) || failed=1
}

absolute() { # PATH as it was meant where the recipe was called
    (cd "$called_from" && realpath -m "$1")
}

usage() { # prints the comment at the start of the recipe
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$called" >&2
    exit 2
}

choose() { # RECIPE SETTING... -> the array `settings` of options
    settings=(--recipe "$1")
    local setting
    for setting in "${@:2}"; do settings+=(--set "$setting"); done
}
