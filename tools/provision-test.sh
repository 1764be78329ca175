#!/usr/bin/env bash
# Runs the virtual machine's provisioning for real, in a fresh Debian 12 chroot, then, as an ordinary user without
# a compiler, what the README promises to a newcomer.
#
#   tools/provision-test.sh [MAKE TARGET...]     (default: demo)
#
# Needs root and mmdebstrap or debootstrap. Packages fetched are kept below build/ for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/debian-root.sh
. tools/debian-root.sh

step() { echo "provision-test: $*"; }

# The outer half: makes the root, and removes it whatever happens.
outer() {
    local root
    [ "$(id -u)" -eq 0 ] || { echo "$0: needs root" >&2; exit 1; }
    mkdir -p build
    root=$(mktemp -d "$PWD/build/chroot.XXXXXX")
    # shellcheck disable=SC2064  # the path is known now
    trap "rm -rf --one-file-system '$root'" EXIT
    make_root "$root"
    in_own_mounts "$0" --inside "$root" "$@"
    if command -v vagrant >/dev/null; then
        step "vagrant validate"
        vagrant validate --ignore-provider
    fi
    step "passed"
}

# Copies the project as it stands, links as links, without anything that was made here.
copy_project() {
    mkdir -p "$1"
    git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do
            if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
        done | tar --null --no-recursion -T - -cf - | tar -C "$1" -xf -
}

# pip finds and trusts its packages in the chroot as it does on this machine.
copy_pip_settings() {
    local root=$1 home=$2
    [ ! -s /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
    if [ -s "$HOME/.config/pip/pip.conf" ]; then
        mkdir -p "$home/.config/pip"
        cp "$HOME/.config/pip/pip.conf" "$home/.config/pip/"
    fi
    if [ -s /etc/ssl/certs/ca-certificates.crt ]; then
        mkdir -p "$root/etc/ssl/certs"
        cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    fi
}

# The inner half: in a mount namespace of its own.
inside() {
    local root=$1 started
    shift
    mount_root "$root"
    copy_project "$root/lading"
    mkdir -p build/apt-archives/partial build/pip-cache "$root/var/cache/pip"
    mount --bind build/apt-archives "$root/var/cache/apt/archives"
    mount --bind build/pip-cache "$root/var/cache/pip"
    echo 'Binary::apt::APT::Keep-Downloaded-Packages "true";' >"$root/etc/apt/apt.conf.d/99keep"

    local plain=(chroot "$root" env -i "PATH=/usr/sbin:/usr/bin:/sbin:/bin" LC_ALL=C.UTF-8 HOME=/root)
    started=$SECONDS
    step "provisioning a fresh Debian 12"
    "${plain[@]}" /lading/tools/provision.sh
    "${plain[@]}" /lading/tools/provision.sh
    step "provisioned in $((SECONDS - started)) s"
    for program in python3 make containers-storage skopeo umoci sqlite3 xz bzip2 zstd getfattr getfacl; do
        "${plain[@]}" sh -c "command -v $program" >/dev/null || { step "$program is not there" >&2; exit 1; }
    done
    for program in cc gcc c++; do
        if "${plain[@]}" sh -c "command -v $program" >/dev/null; then
            step "there is a compiler: $program; the test would prove nothing" >&2
            exit 1
        fi
    done

    "${plain[@]}" useradd --create-home newcomer
    copy_pip_settings "$root" "$root/home/newcomer"
    "${plain[@]}" chown -R newcomer: /lading /home/newcomer /var/cache/pip
    local settings=()
    while IFS= read -r -d '' setting; do
        case $setting in PIP_CACHE_DIR=*) ;; PIP_*=* | *_proxy=* | *_PROXY=*) settings+=("$setting") ;; esac
    done < <(env -0)
    for target in "$@"; do
        started=$SECONDS
        step "make $target, as an ordinary user"
        "${plain[@]}" setpriv --reuid=newcomer --regid=newcomer --clear-groups \
            env "${settings[@]}" HOME=/home/newcomer PIP_CACHE_DIR=/var/cache/pip make -C /lading "$target"
        step "make $target took $((SECONDS - started)) s"
    done
}

if [ "${1:-}" = --inside ]; then
    shift
    inside "$@"
else
    [ $# -gt 0 ] || set -- demo
    outer "$@"
fi
