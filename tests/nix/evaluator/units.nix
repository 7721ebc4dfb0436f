# Writes systemd units from `systemd.services`, `.sockets`, `.timers` and `.targets` to a directory, as NixOS does.
{ lib, pkgs }:
systemd:
let
  word = value: if builtins.isBool value then lib.boolToString value else toString value;
  lines =
    section:
    lib.concatMapStrings (
      name: lib.concatMapStrings (value: "${name}=${word value}\n") (lib.toList section.${name})
    ) (builtins.attrNames section);
  section = name: content: "[${name}]\n${lines content}\n";

  relations = {
    Description = "description";
    After = "after";
    Before = "before";
    Requires = "requires";
    Wants = "wants";
    PartOf = "partOf";
  };
  unitSection =
    unit:
    section "Unit" (
      builtins.mapAttrs (_: attribute: unit.${attribute}) (
        lib.filterAttrs (_: attribute: unit ? ${attribute}) relations
      )
      // unit.unitConfig or { }
    );
  install = unit: section "Install" { WantedBy = unit.wantedBy or [ ]; };

  service =
    unit:
    unitSection unit
    + section "Service" (
      {
        Environment = lib.mapAttrsToList (variable: value: "\"${variable}=${value}\"") (
          unit.environment or { }
          // lib.optionalAttrs (unit.path or [ ] != [ ]) { PATH = lib.makeBinPath unit.path; }
        );
      }
      // lib.optionalAttrs (unit ? script) {
        ExecStart = "${pkgs.writeShellScript "unit-script" "set -e\n${unit.script}"} ${unit.scriptArgs or ""}";
      }
      // unit.serviceConfig or { }
    )
    + install unit;

  files =
    lib.mapAttrs' (
      name: unit:
      lib.nameValuePair (
        if unit.overrideStrategy or "" == "asDropin" then
          "${name}.service.d/overrides.conf"
        else
          "${name}.service"
      ) (service unit)
    ) systemd.services
    // lib.mapAttrs' (
      name: unit:
      lib.nameValuePair "${name}.timer" (
        unitSection unit + section "Timer" unit.timerConfig + install unit
      )
    ) systemd.timers
    // lib.mapAttrs' (
      name: unit:
      lib.nameValuePair "${name}.socket" (
        unitSection unit + section "Socket" unit.socketConfig + install unit
      )
    ) (systemd.sockets or { })
    // lib.mapAttrs' (
      name: unit: lib.nameValuePair "${name}.target" (unitSection unit + install unit)
    ) systemd.targets;
in
pkgs.runCommand "units" { } (
  builtins.concatStringsSep "" (
    lib.mapAttrsToList (name: text: ''
      mkdir -p "$(dirname "$out/${name}")"
      printf %s ${lib.escapeShellArg text} >"$out/${name}"
    '') files
  )
)
