# Minimal Debian 12 roots for tests in a chroot; to be sourced. Needs root.
#
# The root's packages come from where this machine's come from. The finished root is kept as a tar below build/,
# so that only the first test waits for it.
# shellcheck shell=bash

# Prints the file that names this machine's Debian sources; nothing on other systems.
debian_sources() {
    local file
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        if [ -s "$file" ] && grep -q bookworm "$file"; then
            echo "$file"
            return
        fi
    done
}

# make_root DIR: lays a fresh minimal root in DIR, able to install packages and to resolve names.
make_root() {
    local root=$1 kept=build/debian-12.tar new=build/debian-12.new.tar sources
    sources=$(debian_sources)
    if [ ! -s "$kept" ]; then
        mkdir -p build
        echo "making a Debian 12 root" >&2
        if command -v mmdebstrap >/dev/null; then
            mmdebstrap --quiet --variant=minbase bookworm "$new" ${sources:+"$sources"}
        else
            debootstrap --variant=minbase bookworm "$root.debootstrap" >&2
            tar -C "$root.debootstrap" --one-file-system --exclude=./dev --exclude=./proc -cf "$new" .
            rm -rf "$root.debootstrap"
        fi
        mv "$new" "$kept"
    fi
    mkdir -p "$root"
    tar -C "$root" -xf "$kept" --exclude='./dev/*'
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    if [ -n "$sources" ]; then
        rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
        cp "$sources" "$root/etc/apt/${sources#/etc/apt/}"
    fi
}

# mount_root DIR: gives the root /proc, /dev and /tmp. Call it in a mount namespace of its own, with whose last
# process everything goes away again.
mount_root() {
    local root=$1
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 tmp "$root/tmp"
}

# in_own_mounts SCRIPT ARGUMENT...: runs it where its mounts are seen by nobody else.
in_own_mounts() {
    unshare --mount --propagation private -- "$@"
}
