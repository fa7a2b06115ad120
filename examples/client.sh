#!/bin/sh
# Runs a shell command on a host, prints its output, ends with its exit code. Lines framing; needs base64 beside POSIX.
#
#     sh client.sh TOKEN-FILE 'make -j4' ssh host node holdfast.js --bridge
#     sh client.sh TOKEN-FILE 'make -j4' socat - UNIX-CONNECT:"$HOME/.local/state/holdfast/$(hostname)/rpc.sock"
set -eu

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

# Text as a JSON string.
quote() {
  printf '%s\n' "$1" | awk '{ gsub(/[\\"]/, "\\\\&"); gsub(/\t/, "\\t"); text = text separator $0; separator = "\\n" } END { printf "\"%s\"", text }'
}

request() {
  printf '{"jsonrpc":"2.0","id":"%s","method":"%s","params":%s,"auth":%s}\n' "$1" "$1" "$2" "$token" >&3 2>/dev/null || :
}

token=$(quote "$(cat "$1")")
script=$(quote "$2")
shift 2
pipes=$(mktemp -d)
trap 'rm -rf "$pipes"' EXIT
mkfifo "$pipes/to" "$pipes/from"
"$@" <"$pipes/to" >"$pipes/from" &
exec 3>"$pipes/to" 4<"$pipes/from"
trap '' PIPE # a connection that is gone shows when it is read from

request server.capabilities '{}'
noise= line= # what rc files print; an answer begins with {"
until case $line in '{"'*) true ;; *) false ;; esac; do
  noise="$noise$line
"
  [ "${#noise}" -le 65536 ] && IFS= read -r line <&4 || fail "no daemon answered, but $noise$line"
done
case $line in
  *'"result":'*'"instanceId"'*) ;;
  *) fail "$line" ;;
esac

request process.spawn "{\"id\":\"${pipes##*/}\",\"command\":\"/bin/sh\",\"args\":[\"-c\",$script]}"
while IFS= read -r line <&4; do
  data=${line##*'"data":"'} # of an output message, the last member
  case $line in
    '{"type":"stream"'*'"stream":"stdout"'*) printf %s "${data%\"*}" | base64 -d ;;
    '{"type":"stream"'*'"stream":"stderr"'*) printf %s "${data%\"*}" | base64 -d >&2 ;;
    '{"type":"stream"'*'"exitCode":'*) code=${line##*'"exitCode":'} && exit "${code%%[!0-9]*}" ;;
    '{"jsonrpc"'*'"error"'*) fail "$line" ;;
  esac
done
fail "connection lost: the process goes on"
