#!/usr/bin/env bash
# reach.sh NODE: runs `microvm ocf receive` on another node, connected to standard input and output. It stands for ssh
# with a forced command: the nodes share no process and no network connection for that.
set -u
node=$1
streams=/power/receive.$HOSTNAME.$$
mkfifo "$streams.in" "$streams.out"
echo "$HOSTNAME.$$ receive $node" >/power/requests
cat "$streams.out" &
cat >"$streams.in"
wait
until [ -e "$streams.code" ]; do sleep 0.02; done
exit "$(cat "$streams.code")"
