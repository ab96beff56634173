#!/bin/sh
# The guests' first process. Words on the kernel's command line:
#   unasnap.name=NAME   host name
#   unasnap.ip=A/N      IPv4 address of eth0
#   unasnap.ip6=A/N     IPv6 address of eth0
#   unasnap.allow=RIGHTS what operators may do in here
#   unasnap.run=CMD     shell command, anything but letters, digits and ./:-_ written as %XX; its output goes to the console
# With a disk, every second a number is written to it and read back, so that a disk that does not belong to the RAM
# it was restored with is noticed.
export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs run /run
while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order

name=guest ip= ip6= run= agent= allow=
for word in $(cat /proc/cmdline); do
    case $word in
    unasnap.name=*) name=${word#*=} ;;
    unasnap.ip=*) ip=${word#*=} ;;
    unasnap.ip6=*) ip6=${word#*=} ;;
    unasnap.agent=*) agent=${word#*=} ;;
    unasnap.allow=*) allow=${word#*=} ;;
    unasnap.run=*) run=$(printf '%b' "$(echo "${word#*=}" | sed 's/%/\\x/g')") ;;
    esac
done

hostname "$name"
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    # Addresses are given: nobody else has them, so nobody need be asked.
    echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
    [ -z "$ip" ] || ip addr add "$ip" dev eth0
    ip link set eth0 up
    [ -z "$ip6" ] || ip -6 addr add "$ip6" dev eth0
fi

(while :; do
    env $agent unasnap-guest run ${allow:+--allow $allow}
    echo "UNASNAP-AGENT-ENDED $?"
    sleep 1
done) &

if [ -b /dev/vda ]; then
    if mount -t ext4 /dev/vda /disk 2>/dev/null; then
        unasnap-ring disk --path /disk/sequence &
    else
        unasnap-ring disk --path /dev/vda &
    fi
fi

echo "UNASNAP-BOOTED $name $(cut -d' ' -f1 /proc/uptime)"
if [ -n "$run" ]; then
    sh -c "$run" 2>&1
    echo "UNASNAP-RUN-ENDED $?"
fi
while :; do sleep 1000; done
