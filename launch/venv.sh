# shellcheck shell=bash
# To be sourced: creates or reuses a virtual environment with the project, what training needs, and
# the extras in $1 ("test", "cuda", "test,torch", ...), and sets $python to its interpreter.
# PYTHON is the base interpreter, VENV the directory of the environment.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

is_supported() { "$1" -c 'import sys; exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }
for base in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
  is_supported "$base" && break
  base=
done
if [ -z "$base" ]; then
  echo "error: found no Python 3.11, 3.12 or 3.13 among: ${PYTHON:-python3 python3.13 python3.12 python3.11}." \
    "Install one, or name it with PYTHON=/path/to/python3" >&2
  exit 1
fi

venv=${VENV:-.venv}
python=$venv/bin/python
is_supported "$python" || "$base" -m venv --clear "$venv"
# Installs again only if the requirements have changed.
stamp=$(cat pyproject.toml launch/constraints.txt | cksum)
if [ "$stamp" != "$(cat "$venv/installed.$1" 2>/dev/null)" ]; then
  echo "installing into $venv" >&2
  "$python" -m pip install -qq --disable-pip-version-check --constraint launch/constraints.txt \
    --editable ".[train${1:+,$1}]"
  echo "$stamp" >"$venv/installed.$1"
fi
