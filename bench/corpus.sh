#!/usr/bin/env bash
# Builds the eight layers that the benchmarks use: real content, about 1.4 GB of tar.
#
#   bench/corpus.sh DIR
#
# base is a minimal Debian root; py, node and gcc are what its package manager adds for three languages;
# pynode overlaps py and node almost entirely; app-* are three releases of one Python application. Layers that
# are there already are kept. Needs root, mmdebstrap, pip, and the project's environment (make venv), whose own
# store takes the layers in and out.
set -euo pipefail

if [ $# -ne 1 ]; then echo "usage: $0 DIR" >&2; exit 2; fi
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
target=$(cd "$1" && pwd)
work=$(mktemp -d "$target/.making.XXXXXX")
lading=("${LADING:-$here/.venv/bin/lading}" -g "$work/store" -R "$work/run" --progress=none)
mounted=""
tidy() {
    if [ -n "$mounted" ]; then umount -q "$mounted/proc" || true; fi
    "${lading[@]}" shutdown --force >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap tidy EXIT
keep() { mv "$work/$1.tar" "$target/$1.tar"; }  # whole, or not at all

sources=/etc/apt/sources.list.d/debian.sources
if [ ! -e "$sources" ]; then sources=/etc/apt/sources.list; fi

if [ ! -e "$target/base.tar" ]; then
    mmdebstrap --quiet --variant=minbase bookworm "$work/base.tar" "$sources"
    keep base
fi

installed() {  # NAME PACKAGE...: what installing packages changes on top of base
    local name=$1 layer root
    shift
    if [ -e "$target/$name.tar" ]; then return; fi
    if ! "${lading[@]}" exists -q -l base >/dev/null 2>&1; then
        "${lading[@]}" import-layer -i base -f "$target/base.tar" >/dev/null
    fi
    layer=$("${lading[@]}" create-layer base)
    root=$("${lading[@]}" mount "$layer")
    mounted=$root
    for file in /etc/resolv.conf /etc/hosts; do
        if [ -e "$file" ]; then cp "$file" "$root$file"; fi
    done
    rm -f "$root/etc/apt/sources.list"
    cp "$sources" "$root/etc/apt/sources.list.d/"
    cp /etc/apt/apt.conf.d/* "$root/etc/apt/apt.conf.d/"
    mount -t proc proc "$root/proc"
    chroot "$root" env DEBIAN_FRONTEND=noninteractive sh -ec "
        apt-get -qq update
        apt-get -qq install --no-install-recommends $*
        apt-get clean
        rm -rf /var/lib/apt/lists/*" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
    umount "$root/proc"
    mounted=""
    "${lading[@]}" unmount "$layer" >/dev/null
    "${lading[@]}" diff -u -f "$work/$name.tar" "$layer"
    keep "$name"
}

installed py python3 python3-pip python3-venv
installed node nodejs npm
installed gcc build-essential git
installed pynode python3 python3-pip python3-venv nodejs npm

for release in 4.2.10 4.2.11 4.2.13; do
    if [ -e "$target/app-$release.tar" ]; then continue; fi
    "${PYTHON:-python3}" -m pip install --quiet --no-compile \
        --target "$work/app/usr/local/lib/python3.11/site-packages" "django==$release" requests==2.32.3 numpy==1.26.4
    tar --create --file "$work/app-$release.tar" --directory "$work/app" --sort=name --mtime=@1700000000 \
        --owner=0 --group=0 --numeric-owner usr
    rm -rf "$work/app"
    keep "app-$release"
done
