# shellcheck shell=sh
# Runs in stage 1 of a guest. Moves the credentials that the launcher added to the initrd to the directory from which
# systemd imports the credentials of an initrd (systemd.exec(5), import of system credentials). STAGE_1_ROOT is for tests.
if [ -d "${STAGE_1_ROOT:-}/microvm-credentials" ]; then
  mkdir -p "${STAGE_1_ROOT:-}/run/credentials/@initrd"
  chmod 0700 "${STAGE_1_ROOT:-}/run/credentials/@initrd"
  for credential in "${STAGE_1_ROOT:-}"/microvm-credentials/*; do
    cp "$credential" "${STAGE_1_ROOT:-}/run/credentials/@initrd/"
    chmod 0400 "${STAGE_1_ROOT:-}/run/credentials/@initrd/${credential##*/}"
    rm "$credential"
  done
fi
