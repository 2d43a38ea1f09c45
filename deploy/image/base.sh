#!/bin/sh
# Make a base image from Debian's packages alone, for machines that reach no registry: debootstrap and buildah.
#
#   deploy/image/base.sh [NAME]        NAME is localhost/shoal-base by default; as root
#
# Takes minutes; `make image BASE=localhost/shoal-base` builds on it. The mirror is this machine's own, or
# DEBIAN_MIRROR. It stands in for the base that the Dockerfile names, which has the same Debian and Python.
set -eu

name=${1:-localhost/shoal-base}
release=bookworm
packages=python3,python3-venv,ca-certificates
export STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}" # works wherever a container may run, if not fast

for program in debootstrap buildah; do
  command -v "$program" > /dev/null || { echo "$program is missing: apt-get install $program" >&2; exit 1; }
done
mirror=${DEBIAN_MIRROR:-$(sed -n 's/^URIs: *\([^ ]*\/debian\)\/* *$/\1/p' /etc/apt/sources.list.d/*.sources 2> /dev/null | head -n 1)}
mirror=${mirror:-https://deb.debian.org/debian}

root=$(mktemp -d "${TMPDIR:-/var/tmp}/shoal-base.XXXXXX")
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include="$packages" "$release" "$root/root" "$mirror" > "$root/log" \
  || { tail -n 20 "$root/log" >&2; exit 1; }
rm -rf "$root"/root/var/cache/apt/* "$root"/root/var/lib/apt/lists/*

container=$(buildah from scratch)
buildah add --quiet "$container" "$root/root" / > /dev/null
buildah config --cmd python3 "$container"
buildah commit --quiet --rm "$container" "$name" > /dev/null
echo "$name"
