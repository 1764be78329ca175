#!/usr/bin/env bash
# Tries the one-file command as a stranger would: without environment, from another folder, on a system without Python.
#
#   tools/try-binary.sh BINARY
#
# As root it runs in a chroot of a minimal Debian, which has no Python; other users try it on this system.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/debian-root.sh
. tools/debian-root.sh

# The file that is tried, and a layer with a link and a removal, made of nothing but what this folder has.
outer() {
    local place
    mkdir -p build
    place=$(mktemp -d "$PWD/build/try.XXXXXX")
    # shellcheck disable=SC2064  # the path is known now
    trap "rm -rf --one-file-system '$place'" EXIT
    if [ "$(id -u)" -eq 0 ]; then make_root "$place"; fi
    mkdir -p "$place/try/tree/etc" "$place/tmp"
    cp -R docs objects "$place/try/tree/"
    ln -s objects "$place/try/tree/link"
    : >"$place/try/tree/etc/.wh.gone"
    tar -C "$place/try/tree" --exclude=__pycache__ -cf "$place/try/layer.tar" .
    gzip --keep "$place/try/layer.tar"
    install -m 0755 "$1" "$place/try/lading"
    if [ "$(id -u)" -eq 0 ]; then
        ! ls "$place"/usr/bin/python3* 2>/dev/null || { echo "try-binary: the root has a Python" >&2; exit 1; }
        in_own_mounts "$0" --inside "$place"
    else
        (cd "$place/try" && drive "$place/try")
    fi
    echo "try-binary: passed$([ "$(id -u)" -eq 0 ] || echo ', but not in a chroot: that needs root')"
}

inside() {
    mount_root "$1"
    cd "$1/tmp"
    run=(chroot "$1")
    drive "$1/try" /try
}

# drive PLACE [PLACE AS THE COMMAND SEES IT]: stores a layer, gets it back, asks about it.
run=()
drive() {
    local place=$1 seen=${2:-$1} id compression
    lading() { "${run[@]}" /usr/bin/env -i PATH=/nonexistent "$seen/lading" -g "$seen/store" -R "$seen/run" "$@"; }
    lading version
    for compression in "" .gz; do
        id=$(lading create-layer | head -n 1)
        lading applydiff -f "$seen/layer.tar$compression" "$id"
        lading diff -u -f "$seen/out.tar" "$id"
        cmp "$place/layer.tar" "$place/out.tar"
    done
    lading create-image --name tried "$id" >/dev/null
    [ "$(lading sql --csv 'SELECT count(*) AS n FROM v_layer' | tail -n 1)" = 2 ]
    lading check
    start_up "$place"
}

# Tells the median and the extremes of a short command's time, in milliseconds.
start_up() {
    local times=() from to
    for _ in 1 2 3 4 5 6 7 8 9 10 11; do
        from=$(date +%s%N)
        lading exists tried >/dev/null
        to=$(date +%s%N)
        times+=($(((to - from) / 1000000)))
    done
    mapfile -t times < <(printf '%s\n' "${times[@]}" | sort -n)
    echo "try-binary: \`exists\` took ${times[5]} ms in the median (${times[0]} to ${times[10]}), $(stat -c %s "$1/lading") bytes"
}

if [ "${1:-}" = --inside ]; then
    inside "$2"
else
    outer "${1:?usage: $0 BINARY}"
fi
