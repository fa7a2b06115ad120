#!/bin/bash
# A throw-away machine for tests: systemd, logind, dbus and sshd of a root directory, booted in under a second.
#
# It is described by the environment (see `settings` below) and lives until its stdin ends:
#   stdout  `READY <pid of its init> <its directory> <its cgroup>` once users can log in over ssh, or `FAILED <why>`
#   stdin   a line `poweroff` shuts it down in order; the end of stdin, like TERM, ends it at once
#
#   this script ── setpriv ── unshare ── systemd-nspawn ── init of the machine
#    cgroups,       death      pid 1 of a pid namespace       sshd, logind, sessions …
#    sweeping       signal     with mounts of its own
#
# Whatever is killed, all that stands to its right goes with it: the script's end is passed on as a death signal, and the
# end of a pid namespace's first process ends the rest. (Without that namespace the machine survives a `kill -9` of nspawn.)
# Overlay, tmpfs and disk are mounted in the private mount namespace only. What can be left by a `kill -9` of this script
# is a directory in /run and empty cgroups; the next start sweeps them.
set -u

settings() {
  : "${HOST_LOWER=/}"      # root directory to boot; never written to
  : "${HOST_DISK=}"        # image file that keeps the machine's changes for the next boot; by default they are in memory
  : "${HOST_USERS=}"       # names of users to make, by spaces; `name+linger` for one that lingers
  : "${HOST_KILL=}"        # KillUserProcesses=, if it is to be set
  : "${HOST_LOGIND=}"      # more lines for logind.conf
  : "${HOST_SSHD=}"        # more lines for sshd_config, before all others: the first value counts
  : "${HOST_POLKIT=yes}"   # no: as if polkit were not installed
  : "${HOST_BINDS=}"       # directories to share, one `outside:inside` per line
  : "${HOST_PRE=}"         # bash to run before the boot, with the machine's root in $root
  : "${HOST_NODE=}"        # the node to lend to a root that has none
  export HOST_LOWER HOST_DISK HOST_USERS HOST_KILL HOST_LOGIND HOST_SSHD HOST_POLKIT HOST_BINDS HOST_PRE HOST_NODE
}

# The hierarchies that systemd looks at: one on a unified machine, two on a hybrid one.
cgroup_roots() {
  local path
  for path in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    [ -w "$path/cgroup.procs" ] && echo "$path"
  done
}

# Removes what belongs to the host of process $1. Cgroups go bottom up, and only when they are empty.
remove_traces() {
  local path
  for path in $(cgroup_roots); do
    [ -d "$path/holdfast-host-$1" ] && find "$path/holdfast-host-$1" -depth -type d -exec rmdir {} + 2>/dev/null
  done
  rm -rf --one-file-system "/run/holdfast-hosts/$1"
}

sweep() {
  local trace
  for trace in /run/holdfast-hosts/* $(cgroup_roots | sed 's|$|/holdfast-host-*|'); do
    trace=${trace##*[-/]}
    [[ $trace =~ ^[0-9]+$ ]] && [ ! -d "/proc/$trace" ] && remove_traces "$trace"
  done
}

# ---- inside the namespaces, as their first process

mount_root() {
  mkdir -p "$dir/changes" "$dir/root" /run/systemd/nspawn
  mount -t tmpfs -o mode=700 nspawn /run/systemd/nspawn # its locks and propagation directories, which it leaves behind
  if [ -z "$HOST_DISK" ]; then
    mount -t tmpfs -o mode=755 changes "$dir/changes"
  else
    # overlayfs refuses an upper directory inside its lower tree: hence a file system of its own
    [ -s "$HOST_DISK" ] || { truncate -s 1G "$HOST_DISK" && mkfs.ext4 -q "$HOST_DISK"; }
    mount -o loop "$HOST_DISK" "$dir/changes"
  fi
  mkdir -p "$dir/changes/upper" "$dir/changes/work"
  mount -t overlay -o "lowerdir=$HOST_LOWER,upperdir=$dir/changes/upper,workdir=$dir/changes/work" root "$root"
}

configure_root() {
  local etc=$root/etc user name
  mkdir -p "$etc/ssh/sshd_config.d" "$etc/systemd/logind.conf.d" "$etc/systemd/system" "$root/var/lib/systemd/linger"
  if [ ! -e "$dir/changes/upper/etc/machine-id" ]; then # the first boot of this disk
    : >"$etc/machine-id"
    echo "host-$id" >"$etc/hostname"
    echo "127.0.0.1 localhost host-$id" >"$etc/hosts"
    rm -f "$etc"/ssh/ssh_host_*
    ssh-keygen -q -t ed25519 -N '' -f "$etc/ssh/ssh_host_ed25519_key"
    usermod -R "$root" -p '*' root # neither a password nor locked: sshd without PAM refuses locked users
  fi
  cp "$dir/key.pub" "$etc/ssh/authorized_keys" # one key for every user, wherever his home is
  printf '%s\n' "$HOST_SSHD" "AuthorizedKeysFile /etc/ssh/authorized_keys" "HostKey /etc/ssh/ssh_host_ed25519_key" \
    "PermitRootLogin prohibit-password" "MaxStartups 200" "UseDNS no" >"$etc/ssh/sshd_config.d/00-test.conf"
  printf '%s\n' "[Login]" "${HOST_KILL:+KillUserProcesses=$HOST_KILL}" "$HOST_LOGIND" >"$etc/systemd/logind.conf.d/50-test.conf"
  for user in $HOST_USERS; do
    name=${user%+linger}
    grep -q "^$name:" "$etc/passwd" || useradd -R "$root" -m -s /bin/bash -p '*' "$name"
    [ "$name" = "$user" ] || touch "$root/var/lib/systemd/linger/$name"
  done
  if [ "$HOST_POLKIT" = no ]; then
    ln -sf /dev/null "$etc/systemd/system/polkit.service"
    rm -f "$root/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service"
  fi
  # What makes units of disks, consoles, desktops and old scripts, and a greeting, at each boot and login: there are none here, and none of it is ours.
  mkdir -p "$etc"/systemd/{system,user,user-environment}-generators
  for name in "$root"/usr/lib/systemd/{system-generators/*,user-generators/*xdg*,user-environment-generators/*gpg*}; do
    [ ! -e "$name" ] || ln -sf /dev/null "$etc${name#"$root/usr/lib"}"
  done
  for name in systemd-{sysusers,sysctl,journal-flush,tmpfiles-setup-dev}.service dev-{hugepages,mqueue}.mount timers.target; do
    ln -sf /dev/null "$etc/systemd/system/$name"
  done
  rm -rf "$etc/update-motd.d"
  # Not multi-user.target: the root may have services that have no business here.
  printf '%s\n' "[Unit]" "Requires=basic.target dbus.service ssh.service systemd-logind.service" "AllowIsolate=yes" \
    "Wants=systemd-user-sessions.service" "After=basic.target ssh.service systemd-user-sessions.service" >"$etc/systemd/system/test.target"
  ln -sf test.target "$etc/systemd/system/default.target"
}

has_node() {
  local path
  for path in usr/local/bin usr/bin bin; do
    if [ -s "$root/$path/node" ]; then return 0; fi # an empty one is the mount point of an earlier boot
  done
  return 1
}

boot() {
  set -e
  local options=() line
  mount_root
  configure_root
  eval "$HOST_PRE"
  if [ -n "$HOST_NODE" ] && ! has_node; then options+=("--bind-ro=$HOST_NODE:/usr/local/bin/node"); fi
  while read -r line; do [ -z "$line" ] || options+=("--bind=$line"); done <<<"$HOST_BINDS"
  # Two machines started from one cgroup would share one tree of units.
  for line in $(cgroup_roots); do echo 0 >"$line/holdfast-host-$id/cgroup.procs"; done
  # A console that is a pipe, or a stdin that is, makes nspawn hang or quit. root has a home of its own, without this machine's start-up files.
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 \
    systemd-nspawn --quiet --register=no --keep-unit --machine="holdfast-host-$id" --directory="$root" --boot --console=interactive \
    --private-network --tmpfs=/root:mode=0700 "${options[@]}" </dev/null >"$dir/boot.log" 2>&1
}

# ---- outside

# Reads the pids of the children of process $1 into an array, without a process of its own: it is done twenty times while a host boots.
read_children() { children=() && { read -r -a children <"/proc/$1/task/$1/children"; } 2>/dev/null; }

# Finds the machine's init: nspawn's child that is process 1 of a namespace of its own. $init is empty until it is there.
find_init() {
  local child line children
  read_children "$unshare"
  read_children "${children:-none}"
  for child in "${children[@]}"; do
    while read -r line; do [[ $line == NSpid:*[[:space:]]1 ]] && init=$child; done 2>/dev/null <"/proc/$child/status"
  done
}

# Somebody listens on port 22.
has_sshd() {
  local sockets
  read -r -d '' sockets <"/proc/$init/net/tcp"
  [[ $sockets == *:0016\ * ]]
}

# Until systemd-user-sessions.service has run, pam_nologin refuses them: tmpfiles makes this file before sshd is started.
may_login() { [ ! -e "/proc/$init/root/run/nologin" ]; }

fail() {
  echo "FAILED $* $(cat "$dir"/{setup,boot}.log 2>/dev/null | tail -n 4 | tr '\n' ' ')"
  exit 1
}

finish() {
  trap '' EXIT TERM INT HUP
  read_children "$unshare"
  kill -KILL "${children[@]}" 2>/dev/null || kill -KILL "$unshare" 2>/dev/null
  wait "$unshare" 2>/dev/null
  local attempt path
  for attempt in $(seq 50); do # the last processes are being reaped
    remove_traces "$id"
    for path in $(cgroup_roots); do [ -d "$path/holdfast-host-$id" ] && sleep 0.02 && continue 2; done
    return
  done
}

main() {
  local attempt ended line part word=
  id=$$ dir=/run/holdfast-hosts/$$ init=
  root=$dir/root
  export id dir root
  sweep
  mkdir -p "$dir"
  ssh-keygen -q -t ed25519 -N '' -f "$dir/key"
  for line in $(cgroup_roots); do mkdir "$line/holdfast-host-$id"; done
  setpriv --pdeathsig KILL unshare --mount --propagation private --pid --mount-proc --fork --kill-child=KILL \
    bash "$0" boot </dev/null >"$dir/setup.log" 2>&1 &
  unshare=$!
  trap 'finish; exit 0' TERM INT HUP
  trap finish EXIT
  for attempt in $(seq 1200); do
    [ -d "/proc/$unshare" ] || fail "it ended while it was booting:"
    [ -n "$init" ] || find_init
    [ -n "$init" ] && has_sshd && may_login && break
    [ "$attempt" -lt 1200 ] || fail "no ssh login in time:"
    sleep 0.05
  done
  echo "READY $init $dir $(sed -n 's|^0::\(.*\)/init.scope$|\1|p' "/proc/$init/cgroup")"
  while [ -d "/proc/$unshare" ]; do # which may also end by itself: someone may have run `poweroff`
    read -r -t 0.2 part
    ended=$?
    word+=$part # on a busy machine the 0.2 s may end within a line
    [ "$ended" -ne 1 ] || return # 1 is the end of stdin, over 128 the end of these 0.2 s
    [ "$ended" -eq 0 ] || continue
    [ "$word" != poweroff ] || kill -RTMIN+4 "$init" # may take 90 s, if a service ignores SIGTERM
    word=
  done
}

settings
# `exit`, since bash would go on reading here, in a file that may have been edited meanwhile
if [ "${1:-}" = boot ]; then boot; else main; exit; fi
