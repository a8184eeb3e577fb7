#!/usr/bin/env bash
# Make this host a backend: backend.sh BRIDGE_ADDRESS SERVER_ADDRESS [VIP]
# nginx listens on SERVER_ADDRESS, which is added to the bridge's interface. L3DSR_SECRET holds the
# secret.
# shellcheck source=lab/provision/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

own=${1:-192.168.33.20}
server=${2:-192.168.33.30}
vip=${3:-192.168.33.10}
interface=$(interface_of "$own")

set_up_nginx() {
  install_packages nginx-light
  rm -f /etc/nginx/sites-enabled/default
  write /etc/nginx/conf.d/l3dsr.conf <<END
server {
  listen $server:80;
  root /srv/l3dsr;
  location / { return 200 "\$hostname \$request_uri \$remote_addr:\$remote_port\n"; }
  location /files/ { }
}
END
  mkdir -p /srv/l3dsr/files
}

# Whatever manages the interface, the server's address comes with this unit.
set_up_address() {
  sed -e "s/@INTERFACE@/$interface/" -e "s/@ADDRESS@/$server/" \
    "$project/lab/systemd/l3dsr-server-address.service" |
    write /etc/systemd/system/l3dsr-server-address.service
  enable_unit l3dsr-server-address.service
}

set_up_bridge() {
  write "$settings/packetbridge.toml" <<END
# What each key means: packetbridge --help
interface = "$interface"
address = "$own"
metrics = "127.0.0.1:9102"

[[service]]
vip = "$vip:80"
dscp = 3
server = "$server:80"
END
  packetbridge check "$settings/packetbridge.toml"
  write /etc/systemd/system/l3dsr-packetbridge.service \
    <"$project/lab/systemd/l3dsr-packetbridge.service"
  enable_unit l3dsr-packetbridge.service
}

install_programs
install_secret
changed=
set_up_address
changed=
set_up_nginx
enable_unit nginx.service
changed=
set_up_bridge
say "the backend is set up"
