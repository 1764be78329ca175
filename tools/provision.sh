#!/usr/bin/env bash
# Prepares a Debian 12 machine for this project: what building and testing need from the distribution.
#
#   tools/provision.sh [ci]
#
# The virtual machine runs it as it is; .ci/run adds `ci`: what only the tests of the surroundings need.
# Needs root. May be repeated. Python packages are not its business: `make` puts those into .venv.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

needed=(python3 python3-venv make)
# The reference program that behaviour is compared with, tools that write and read images, file attributes,
# every compression a layer may have, block devices and filesystems for the tests of faults.
tests=(containers-storage skopeo umoci sqlite3 tar gzip bzip2 xz-utils zstd attr acl dmsetup e2fsprogs erofs-utils xfsprogs btrfs-progs mount rsync)
ci=(git vagrant mmdebstrap)

packages=("${needed[@]}" "${tests[@]}")
case ${1:-} in
    "") ;;
    ci) packages+=("${ci[@]}") ;;
    *) echo "usage: $0 [ci]" >&2; exit 2 ;;
esac
if [ "$(id -u)" -ne 0 ]; then
    echo "$0: needs root" >&2
    exit 1
fi

# dpkg knows what is there: a machine that has everything needs no network.
missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "provision: everything is there"
    exit 0
fi

# A third-party source of the machine may be down while Debian's own work: only a failed install counts.
install() {
    apt-get update -qq || echo "provision: not all package lists could be fetched" >&2
    apt-get install -y -qq --no-install-recommends -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "${missing[@]}"
}
echo "provision: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for wait_s in 5 15 last; do
    if install >"$log" 2>&1; then
        echo "provision: done"
        exit 0
    fi
    tail -n 20 "$log" >&2
    [ "$wait_s" = last ] && break
    echo "provision: trying again in $wait_s s" >&2
    sleep "$wait_s"
done
echo "provision: could not install ${missing[*]}" >&2
exit 1
