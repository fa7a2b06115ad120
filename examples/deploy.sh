#!/bin/sh
# Puts holdfast on a host, starts it or joins the one that runs, and prints one JSON line: what --serve --json says, the host, and whether the
# file was copied. Repeat it as often as you like: it copies only what differs, and never ends a daemon that has work to do.
#
#     examples/deploy.sh HOST [SSH OPTION ...]
#     xargs -P 10 -I{} examples/deploy.sh {} -o BatchMode=yes < hosts
#
# HOST is what ssh takes: a name, user@name, or an alias of ssh_config. In the environment:
#     HOLDFAST_FILE   the built file; ../dist/holdfast.js beside this script by default
#     HOLDFAST_SERVE  more options of --serve, as they stand: "--enable-linger"
#     SSH             the ssh client, "ssh" by default
#
# The remote commands are one line each, in single quotes, without !, \ or ' in them: so they mean the same in sh, bash, fish and tcsh. The file is
# run as `sh holdfast.js`: its first lines find the runtime, and a home that is mounted noexec does not matter.
set -u

fail() {
  echo "deploy.sh: $host: $1" >&2
  exit "${2:-1}"
}

host=${1:-}
case $host in
'' | -* | *[!A-Za-z0-9@._:%+-]*)
  echo "usage: deploy.sh HOST [SSH OPTION ...]" >&2
  exit 64
  ;;
esac
shift
case ${HOLDFAST_SERVE:-} in
*[!A-Za-z0-9\ =/._-]*) fail "HOLDFAST_SERVE has characters that a shell of the host might read its own way" 64 ;;
esac

file=${HOLDFAST_FILE:-$(dirname -- "$0")/../dist/holdfast.js}
[ -r "$file" ] || fail "cannot read \"$file\": build it first, or name it in HOLDFAST_FILE" 66
hash=$(sed -n 's/^ *sha256: "\([0-9a-f]*\)".*/\1/p' "$file" | head -n 1)
size=$(($(wc -c <"$file")))
[ ${#hash} -eq 64 ] || fail "\"$file\" carries no hash: it is no built holdfast.js" 65

# stdin is the file, or nothing
remote() {
  "${SSH:-ssh}" "$@"
}
run='sh .holdfast/holdfast.js'
serve="$run --serve --json ${HOLDFAST_SERVE:-}"

# Is this very file there? Then serve, in the same connection. 97 is nobody's exit code.
copied=false
words=$(remote "$@" "$host" "sh -c 'grep -qs $hash .holdfast/holdfast.js || exit 97; exec $serve'" </dev/null)
code=$?
if [ $code -eq 97 ]; then
  # Whole or not at all. Of several at once the first copies; a lock that is 20 s old is nobody's any more. An older daemon that is idle makes room,
  # one that has work is joined as it is.
  words=$(remote "$@" "$host" "sh -c 'umask 077; f=.holdfast/holdfast.js; n=.holdfast/new.\$\$; l=.holdfast/lock; t=0; \
mkdir -p .holdfast && cat > \$n && [ \$((\$(wc -c < \$n))) -eq $size ] && chmod 700 \$n || { rm -f \$n; exit 73; }; \
until ln \$n \$l 2> /dev/null || [ \$t -ge 20 ]; do sleep 1; t=\$((t + 1)); done; \
grep -qs $hash \$f || { mv \$n \$f && echo copied; $run --stop --if-idle > /dev/null 2>&1; }; rm -f \$n \$l; exec $serve'" <"$file")
  code=$?
  case $words in *copied*) copied=true ;; esac
fi
[ $code -eq 0 ] || fail "--serve ended with exit code $code" $code
# start-up files of the login shell may have their own words on stdout
line=$(printf '%s\n' "$words" | grep '^{"socket":' | tail -n 1)
[ -n "$line" ] || fail "--serve said no JSON: $words"

# The handshake that counts is that of the next session.
instance=$(printf '%s\n' "$line" | sed 's/.*"instance":"\([0-9a-f]*\)".*/\1/')
answer=$(remote "$@" "$host" "$run --call server.capabilities" </dev/null)
case $answer in
*"\"instanceId\":\"$instance\""*) ;;
*) fail "the daemon was $(printf '%s\n' "$line" | sed 's/.*"how":"\([a-z]*\)".*/\1/'), but another session does not reach it: $answer" 69 ;;
esac
printf '{"host":"%s","copied":%s,%s\n' "$host" "$copied" "${line#?}"
