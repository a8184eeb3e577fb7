#!/usr/bin/env bash
# Make this host the balancer: balancer.sh OWN_ADDRESS VIP BACKEND...
# The backends' ids are their places in the list, from 1. L3DSR_SECRET holds the secret.
# shellcheck source=lab/provision/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

own=${1:-192.168.33.11}
vip=${2:-192.168.33.10}
backends=("${@:3}")
((${#backends[@]})) || backends=(192.168.33.20 192.168.33.21)

settings_file() {
  local number
  cat <<END
# What each key means: balancer --help
interface = "$(interface_of "$own")"
metrics = "127.0.0.1:9101"

[[service]]
vip = "$vip"
port = 80
dscp = 3
key = "http.path"
END
  for number in "${!backends[@]}"; do
    cat <<END

[[service.backend]]
id = $((number + 1))
address = "${backends[number]}"
END
  done
}

install_programs
install_secret
settings_file | write "$settings/balancer.toml"
balancer check "$settings/balancer.toml"
write /etc/systemd/system/l3dsr-balancer.service <"$project/lab/systemd/l3dsr-balancer.service"
enable_unit l3dsr-balancer.service
say "the balancer is set up"
