#!/bin/sh
# Build the image with whatever builds images here: docker, podman or buildah.
#
#   deploy/image/build.sh [NAME]        NAME is localhost/shoal:latest by default
#
# Variables: TORCH (cuda or cpu), TORCH_INDEX, EXTRAS, BASE as the Dockerfile explains them; PIP_CONF, a pip.conf
# for those who reach PyPI through a mirror; BUILDER, one of the three; FLAGS, further arguments of the builder.
set -eu

name=${1:-localhost/shoal:latest}
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ -n "${BUILDER:-}" ]; then
  builder=$BUILDER
elif docker buildx inspect > /dev/null 2>&1; then # the command alone is no engine, and the old builder knows no secrets
  builder=docker
elif command -v podman > /dev/null; then
  builder=podman
elif command -v buildah > /dev/null; then
  builder=buildah
else
  echo "nothing here builds images: docker (with buildx), podman or buildah (Debian: apt-get install buildah)" >&2
  exit 1
fi

set -- --file "$root/deploy/Dockerfile" --tag "$name"
set -- "$@" --build-arg "TORCH=${TORCH:-cuda}" --build-arg "TORCH_INDEX=${TORCH_INDEX:-}" --build-arg "EXTRAS=${EXTRAS:-}"
set -- "$@" --build-arg "REVISION=$(git -C "$root" rev-parse HEAD 2> /dev/null || echo unknown)"
[ -z "${BASE:-}" ] || set -- "$@" --build-arg "BASE=$BASE"
[ -z "${PIP_CONF:-}" ] || set -- "$@" --secret "id=pip,src=$PIP_CONF"
case $builder in
  # HEALTHCHECK is known to Docker's format alone; chroot works where a container may not make another.
  buildah) set -- "$@" --format docker --isolation chroot --ignorefile "$root/deploy/Dockerfile.dockerignore" ;;
  podman) set -- "$@" --format docker --ignorefile "$root/deploy/Dockerfile.dockerignore" ;;
esac
# shellcheck disable=SC2086  # FLAGS are several words
exec "$builder" build "$@" ${FLAGS:-} "$root"
