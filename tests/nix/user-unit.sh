# shellcheck shell=bash
# user-unit.sh: `microvm install --user` under the service manager of a user. systemd.sh includes it.

# A machine of an ordinary user, whose service manager runs it while nobody is logged in.
check_user_service() {
  local id state=/home/alice/machine unit=microvm-home.service printed
  useradd --create-home --groups kvm alice
  id=$(id -u alice)
  ln -s "$(systemctl cat microvm@qemu | grep -o '/nix/store/[^ ]*/bin/microvm' | head -n 1)" /usr/local/bin/microvm
  jq '.name = "home" | .shares = [] | .kernelParams += ["wait=long"]
    | .interfaces = [{ type: "user", id: "usernet", mac: "02:00:00:00:02:03" }]' /var/lib/microvms/qemu/current/share/microvm/machine.json >/home/alice/home.json
  systemctl start systemd-logind
  loginctl enable-linger alice
  wait_until test -S "/run/user/$id/systemd/private"
  as_alice mkdir "$state"
  as_alice microvm install --user --state-dir "$state" /home/alice/home.json >/run/printed 2>&1 || die "no user unit is written: $(cat /run/printed)"
  grep -qx "start it with: systemctl --user daemon-reload && systemctl --user enable --now $unit" /run/printed || die "microvm install prints: $(cat /run/printed)"
  as_alice systemctl --user daemon-reload
  as_alice systemctl --user enable --now $unit 2>/run/printed || { user_journal >&2; die "the user unit does not start: $(cat /run/printed)"; }
  wait_until user_said waiting
  printed=$(as_alice microvm status)
  grep -q '^home  *qemu  *running' <<<"$printed" || die "the user sees of the machine: $printed"
  [ "$(stat -c %U "$state/var.img")" = alice ] || die "the volume of the user's machine belongs to $(stat -c %U "$state/var.img")"
  [ "$(ps -o user= -p "$(user_property MainPID)")" = alice ] || die "the user's machine runs as $(ps -o user= -p "$(user_property MainPID)")"

  printed=$(as_alice microvm suspend home 2>&1) || { user_journal >&2; die "the user's machine cannot be suspended: $printed"; }
  wait_until user_unit_is inactive
  [ "$(user_property Result)" = success ] || die "the user unit of a suspended machine ended with $(user_property Result)"
  as_alice systemctl --user start $unit
  wait_until user_said 'home was resumed'
  ! user_said 'devices reported' || die "the user's machine booted instead of going on"

  # A crashed hypervisor is started again.
  pkill -KILL -u alice qemu
  wait_until user_said 'devices reported'
  [ "$(user_property NRestarts)" = 1 ] || die "the user unit was started again $(user_property NRestarts) times"
  wait_until user_unit_is active
  id=$(user_property InvocationID)
  as_alice systemctl --user disable --now $unit 2>/dev/null
  [ "$(user_property Result)" = success ] || die "the user unit was stopped with $(user_property Result)"
  journalctl --sync
  journalctl --quiet "_SYSTEMD_INVOCATION_ID=$id" | grep 'request ' >/dev/null || die "the user's machine was not asked to stop"
  loginctl disable-linger alice
  echo "home: a user unit starts, suspends, restarts and stops a machine"
}
as_alice() { # COMMAND...
  setpriv --reuid=alice --regid=alice --init-groups env --ignore-environment --chdir=/home/alice HOME=/home/alice "XDG_RUNTIME_DIR=/run/user/$(id -u alice)" \
    PATH=/usr/local/bin:/usr/bin:/bin "$@"
}
user_property() { as_alice systemctl --user show --property "$1" --value microvm-home.service; } # PROPERTY
user_unit_is() { [ "$(user_property ActiveState)" = "$1" ]; }                                    # STATE
user_journal() { journalctl --quiet --no-pager --output cat "_SYSTEMD_INVOCATION_ID=$(user_property InvocationID)"; }
user_said() { user_journal | grep "$1" >/dev/null; } # TEXT, since its last start
