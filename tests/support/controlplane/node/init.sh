#!/bin/bash
# The first process of a node's private namespaces: it prepares them and reaps until it is killed.
# Usage: init.sh DATA READY ADDRESS
#   DATA     folder that becomes /var/lib and outlives the namespaces
#   READY    file that is made when everything is prepared
#   ADDRESS  the node's address with its prefix length
set -eu
data=$1 ready=$2 address=$3

mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p "$data"
mount --bind "$data" /var/lib

# The kubelet writes these; the host's stay as they are.
mkdir /run/settings
for setting in kernel/panic=10 kernel/panic_on_oops=1 vm/overcommit_memory=1; do
    file=/run/settings/${setting##*/}
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done

hostname node-0
ip link set lo up
ip link add node0 type bridge
ip address add "$address" dev node0
ip link set node0 up
ip route add default dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward

touch "$ready"
while true; do
    sleep 3600 &
    wait $! || true
done
