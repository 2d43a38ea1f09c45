#!/bin/sh
# Make secrets: passwords of the database and its three roles, their URLs, the token of the Ray cluster, the key
# that signs webhooks, Grafana's password, and the file of those who may look at the pages. What is there is kept.
#
#   deploy/secrets.sh            what is missing, in deploy/secrets (compose.yaml takes them from there)
#   deploy/secrets.sh NAME...    these anew (then follow "Rotate secrets" in deploy/README.md)
#
# SECRETS names another folder, DATABASE_HOST another host than compose's `postgres`.
#
# Docker mounts the files as they are, and the containers run as user 10001: so the files can be read by all,
# and the folder around them by you alone.
set -eu

host=${DATABASE_HOST:-postgres}
folder=${SECRETS:-$(dirname "$0")/secrets}

umask 077
mkdir -p "$folder/roles"
chmod 0700 "$folder"
chmod 0755 "$folder/roles"
cd "$folder"

random() {
  # Letters and digits only: no URL and no shell has to escape them. 40 of them are 238 bits.
  LC_ALL=C tr -dc 'A-Za-z0-9' < /dev/urandom | head -c 40
}

make() { # FILE TEXT: whole or not at all; without a newline, for not everybody who reads it takes one away
  printf '%s' "$2" > "$1.new"
  chmod 0444 "$1.new"
  mv -f "$1.new" "$1"
}

url() { # ROLE PASSWORD
  printf 'postgresql://%s:%s@%s:5432/shoal' "$1" "$2" "$host"
}

for name in "$@"; do
  case $name in
    admin) rm -f postgres-password admin-url ;;
    owner | worker | reader) rm -f "roles/shoal_$name" "$name-url" ;;
    ray) rm -f ray-token ;;
    webhook) rm -f webhook-secret ;;
    grafana) rm -f grafana-password ;;
    *)
      echo "secrets are called: admin owner worker reader ray webhook grafana" >&2
      exit 2
      ;;
  esac
done

[ -e postgres-password ] || make postgres-password "$(random)"
[ -e admin-url ] || make admin-url "$(url postgres "$(cat postgres-password)")"
for role in owner worker reader; do
  [ -e "roles/shoal_$role" ] || make "roles/shoal_$role" "$(random)"
  [ -e "$role-url" ] || make "$role-url" "$(url "shoal_$role" "$(cat "roles/shoal_$role")")"
done
[ -e ray-token ] || make ray-token "$(random)"
[ -e webhook-secret ] || make webhook-secret "$(random)"
# Nobody is told anything: write the address of your receiver into it.
[ -e webhook-url ] || make webhook-url ""
[ -e grafana-password ] || make grafana-password "$(random)"
# Nobody may look yet: deploy/README.md, "Who may look", says how a line of this file is made.
[ -e web-users ] || make web-users "# NAME HASH"
echo "secrets are in $PWD" >&2
