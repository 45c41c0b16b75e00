#!/usr/bin/env bash
# Two machines on one, node1 and node2: each has a network, a name, processes and a sshd of its own, both have the disk.
#
#     unshare --mount --net --uts --pid --fork --kill-child --mount-proc bash two_nodes.sh FOLDER node1
#
# stands until it is killed, and then nothing is left but FOLDER, which has the keys and the settings. FOLDER/node1.pid
# appears when both listen. Outside nothing changes: /etc and /run are covered for these processes alone.
set -euo pipefail
folder=$1 name=$2

if [[ $name == node1 ]]; then
    ssh-keygen -q -t ed25519 -N '' -f "$folder/host_key"
    ssh-keygen -q -t ed25519 -N '' -f "$folder/user_key"
    printf '%s\n' '127.0.0.1 localhost' '10.77.0.1 node1' '10.77.0.2 node2' >"$folder/hosts"
    echo "node1,node2 $(cut -d ' ' -f 1,2 "$folder/host_key.pub")" >"$folder/known_hosts"
    cat >"$folder/ssh_config" <<END
IdentityFile $folder/user_key
GlobalKnownHostsFile $folder/known_hosts
UserKnownHostsFile none
BatchMode yes
END
    # ssh passes no environment on. Two processes of two threads each spin on two cores.
    cat >"$folder/sshd_config" <<END
HostKey $folder/host_key
AuthorizedKeysFile $folder/user_key.pub
PasswordAuthentication no
PermitRootLogin yes
StrictModes no
UsePAM no
SetEnv OMP_NUM_THREADS=1
END
    mount --bind "$folder/hosts" /etc/hosts
    mount --bind "$folder/ssh_config" /etc/ssh/ssh_config
    address=10.77.0.1 device=eth1
    ip link add eth1 type veth peer name eth2
    unshare --mount --net --uts --pid --fork --kill-child --mount-proc bash "$0" "$folder" node2 &
    until [[ $(readlink "/proc/$!/ns/net") != "$(readlink /proc/self/ns/net)" ]]; do sleep 0.1; done
    ip link set eth2 netns $!
else
    address=10.77.0.2 device=eth2
    until ip link show eth2 >/dev/null 2>&1; do sleep 0.1; done
fi

hostname "$name"
ip link set lo up
ip address add "$address/24" dev "$device"
ip link set "$device" up
mount -t tmpfs none /run
mkdir /run/sshd
if [[ $name == node1 ]]; then
    until [[ -e $folder/node2.pid ]]; do sleep 0.1; done
fi
exec "$(type -P sshd || echo /usr/sbin/sshd)" -D -e -f "$folder/sshd_config" -o PidFile="$folder/$name.pid"
