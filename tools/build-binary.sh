#!/usr/bin/env bash
# Makes dist/lading: the command as one file that needs no Python on the machine it runs on.
#
#   tools/build-binary.sh
#
# Built from the wheel, in an environment that holds the wheel and the bundler and nothing else: what the wheel forgot
# is missing from the file, too, and tools/try-binary.sh notices. The bundler needs an interpreter with a shared
# library (Debian: libpython3.11). PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$PWD/build/binary
python=${PYTHON:-python3}
pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
export PIP_ROOT_USER_ACTION=ignore

rm -rf "$work" build/lib build/bdist.*
mkdir -p "$work" dist
"$python" -m venv --clear "$work/venv"
echo "build-binary: the wheel"
"${VENV:-.venv}/bin/python" -m build --wheel --outdir "$work/wheel" . >"$work/wheel.log" 2>&1 ||
    { cat "$work/wheel.log" >&2; exit 1; }
pip install "$work"/wheel/lading-*.whl pyinstaller

echo "build-binary: the file"
printf 'from lading.cli.entry import main\n\nmain()\n' >"$work/start.py"
# What the bundler runs before that would make a traceback of an interrupt; until the command takes it, it just ends.
printf 'import signal\n\nif signal.getsignal(signal.SIGINT) is signal.default_int_handler:\n    signal.signal(signal.SIGINT, signal.SIG_DFL)\n' \
    >"$work/early.py"
cp tools/lading.spec "$work/"
(cd "$work" && "$work/venv/bin/python" -m PyInstaller --noconfirm --log-level WARN --distpath "$work/out" lading.spec) \
    >"$work/bundle.log" 2>&1 || { tail -n 40 "$work/bundle.log" >&2; exit 1; }
mv "$work/out/lading" dist/lading
echo "build-binary: dist/lading, $(stat -c %s dist/lading) bytes"
