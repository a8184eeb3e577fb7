# What balancer.sh and backend.sh share; sourced by them. Each step may be run again: it changes
# only what is not yet as it should be. Works without a running systemd (in a chroot): units are
# enabled then, and start with the system.
# shellcheck shell=bash
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
project=$(cd -- "$here/../.." && pwd)
prefix=/opt/l3dsr
settings=/etc/l3dsr
sources=(pyproject.toml setup.py MANIFEST.in README.md LICENSE docs balancer packetbridge common)
export DEBIAN_FRONTEND=noninteractive

say() { echo "l3dsr: $*"; }

systemd_runs() { [[ -d /run/systemd/system ]]; }

# install_packages NAME...
install_packages() {
  local package missing=()
  for package in "$@"; do
    [[ $(dpkg-query -Wf '${Status}' "$package" 2>/dev/null) == *" installed" ]] ||
      missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  apt-get update -qq
  apt-get install -qqy --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

# The programs, in an environment of their own, and as commands that sudo finds.
install_programs() {
  local program digest
  install_packages python3 python3-venv python3-dev build-essential libnetfilter-queue-dev \
    libnfnetlink-dev clang llvm libbpf-dev libbpf1 linux-libc-dev nftables iptables iproute2 \
    procps ca-certificates
  digest=$(cd -- "$project" &&
    find "${sources[@]}" -type f -not -name '*.pyc' -not -name '*.bpf.o' -print0 |
    sort -z | xargs -0 sha256sum | sha256sum)
  if [[ ! -f $prefix/installed || $(<"$prefix/installed") != "$digest" ]]; then
    say "installing the programs into $prefix"
    [[ -x $prefix/bin/python ]] || python3 -m venv "$prefix"
    # From a copy, since the build writes beside its sources.
    rm -rf "$prefix/src"
    mkdir -p "$prefix/src"
    (cd -- "$project" && cp -a "${sources[@]}" "$prefix/src/")
    find "$prefix/src" -name '*.bpf.o' -delete
    L3DSR_FAST=require "$prefix/bin/python" -m pip install -q --upgrade --force-reinstall \
      --no-deps "$prefix/src"
    "$prefix/bin/python" -m pip install -q "$prefix/src"
    echo "$digest" >"$prefix/installed"
  fi
  for program in balancer packetbridge; do
    ln -sfn "$prefix/bin/$program" "/usr/local/bin/$program"
  done
}

# The cluster's secret, from the environment; without one there has to be a file already.
install_secret() {
  mkdir -p "$settings"
  if [[ ${L3DSR_SECRET:-} ]]; then
    (umask 077 && echo "$L3DSR_SECRET" >"$settings/secret.new")
    replace "$settings/secret"
  elif [[ ! -f $settings/secret ]]; then
    say "there is no $settings/secret: copy it from a balancer, or make one: balancer keygen" >&2
    exit 1
  fi
}

# replace FILE: put FILE.new in its place where it differs.
replace() {
  if [[ -f $1 ]] && cmp -s -- "$1" "$1.new"; then
    rm -f -- "$1.new"
  else
    mv -f -- "$1.new" "$1"
    changed=1
  fi
}

# write FILE: standard input becomes FILE; `changed` is set where it differs.
write() {
  cat >"$1.new"
  chmod 0644 "$1.new"
  replace "$1"
}

# The interface that has an address; eth1, as in the lab, where none has it.
interface_of() {
  local found
  found=$(ip -o -4 address show 2>/dev/null | awk -v wanted="$1" '
    { split($4, part, "/"); if (part[1] == wanted) { print $2; exit } }')
  echo "${found:-eth1}"
}

# enable_unit NAME: with the system, and now if that runs; again if something changed.
enable_unit() {
  systemctl enable -q "$1"
  if systemd_runs; then
    systemctl daemon-reload
    if [[ ${changed:-} ]]; then
      systemctl restart "$1"
    else
      systemctl start "$1"
    fi
  fi
}
