#!/bin/bash
# Builds the root directory of a Debian suite for test hosts, if it is not there yet, and prints its path.
#   suiteroot.sh SUITE     progress goes to stderr; a first build takes a minute or two and 600 MiB of the cache
set -euo pipefail
[[ ${1:-} =~ ^[a-z]+$ ]] || { echo "usage: suiteroot.sh SUITE" >&2; exit 64; }

packages=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,openssh-server,sudo,iproute2,procps,libstdc++6,libatomic1,python3,fish,tcsh,make,gcc,libc6-dev
if [ "$1" = bullseye ]; then packages+=,policykit-1; else packages+=,polkitd; fi
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/holdfast/roots
root=$cache/$1-$(cksum <<<"$packages" | cut -d' ' -f1) # another list makes another root

# One line that is written over on a terminal; elsewhere only what is unusual.
show_progress() {
  local line
  while read -r line; do
    if [[ ! $line =~ ^I: ]]; then echo "$line"; elif [ -t 1 ]; then printf '\r%.78s\e[K' "$line"; fi
  done
  if [ -t 1 ]; then printf '\r\e[K'; fi
}

# debootstrap has a script for each suite that was known when it was made; what is newer is built as sid is.
scripts_for() {
  local own=/usr/share/debootstrap linked=$cache/.scripts
  if [ -e "$own/scripts/$1" ]; then echo "$own"; return; fi
  rm -rf "$linked"
  cp -a "$own" "$linked"
  ln -s sid "$linked/scripts/$1"
  echo "$linked"
}

mkdir -p "$cache"
exec 3>"$cache/.$1.lock"
flock 3 # a second run waits for the first one's build

if [ ! -e "$root" ]; then
  echo "Building the root of $1 in $cache …" >&2
  rm -rf --one-file-system "$root.partial"
  DEBOOTSTRAP_DIR=$(scripts_for "$1") debootstrap --variant=minbase --include="$packages" "$1" "$root.partial" </dev/null | show_progress >&2
  rm -f "$root.partial"/var/cache/apt/archives/*.deb
  mv "$root.partial" "$root"
fi
echo "$root"
