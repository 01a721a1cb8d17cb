#!/usr/bin/env bash
# SLURM's Debian packages for the tests on a real cluster, if they are missing.  Exit 77: they cannot be had here.
set -uo pipefail
have() { for name in "$@"; do PATH=$PATH:/usr/sbin command -v "$name" >/dev/null || return 1; done; }
NEEDED="sbatch srun slurmctld slurmd slurmdbd munged mariadbd mariadb-install-db my_print_defaults"
have $NEEDED && exit 0
SUDO=
[ "$(id -u)" = 0 ] || SUDO="sudo -n"
if ! have apt-get || ! $SUDO true 2>/dev/null; then
  echo "SKIPPED: the tests on a real SLURM cluster need slurm-wlm munge slurmdbd mariadb-server-core" >&2
  echo "mariadb-client-core, and this is no Debian machine with root; install SLURM's daemons yourself" >&2
  exit 77
fi
echo "installing SLURM's packages, once" >&2
export DEBIAN_FRONTEND=noninteractive
$SUDO apt-get update -qq >&2 &&
  $SUDO apt-get install -y -qq --no-install-recommends \
    slurm-wlm munge slurmdbd mariadb-server-core mariadb-client-core >&2 || exit 1
have $NEEDED
