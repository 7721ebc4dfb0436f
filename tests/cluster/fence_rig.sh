#!/usr/bin/env bash
# The fence agent of the rig: asks the power switch outside the nodes. It has the interface of fence-agents: options on
# standard input; exit code 0 is success, and 2 for `status` means off.
set -u
action=reboot plug=
while [ ! -t 0 ] && IFS='=' read -r name value; do
  case $name in
  action) action=$value ;;
  plug | port | nodename) plug=${plug:-$value} ;;
  esac
done
while [ $# -gt 0 ]; do
  case $1 in -o | --action) action=${2:-} && shift ;; esac
  shift
done

ask() { # REQUEST: prints the answer of the power switch; fails if there is none
  local id=$$-$RANDOM
  echo "$id $*" >/power/requests &
  for _ in $(seq 100); do
    [ -e "/power/answer.$id" ] && cat "/power/answer.$id" && return 0
    sleep 0.05
  done
  kill %1 2>/dev/null
  return 1
}

case $action in
metadata | meta-data)
  cat <<'END'
<?xml version="1.0" ?>
<resource-agent name="fence_rig" shortdesc="Fence agent of the rig">
<longdesc>Cuts the power of a node of the rig.</longdesc><vendor-url>none</vendor-url>
<parameters>
<parameter name="action" unique="0" required="1"><content type="string" default="reboot"/><shortdesc lang="en">action</shortdesc></parameter>
<parameter name="plug" unique="0" required="0"><content type="string"/><shortdesc lang="en">node</shortdesc></parameter>
</parameters>
<actions><action name="on" automatic="0"/><action name="off"/><action name="reboot"/><action name="status"/><action name="list"/><action name="monitor"/><action name="metadata"/></actions>
</resource-agent>
END
  ;;
monitor) [ "$(ask status n1)" ] ;;
list) printf '%s\n' n1, n2, n3, ;;
status) case $(ask status "$plug") in on) ;; off) exit 2 ;; *) exit 1 ;; esac ;;
off) [ "$(ask off "$plug")" = off ] ;;
on) [ "$(ask on "$plug")" = on ] ;;
reboot) [ "$(ask off "$plug")" = off ] && { ask on "$plug" >/dev/null || true; } ;;
*) exit 1 ;;
esac
