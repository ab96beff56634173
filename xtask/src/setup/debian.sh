# Arguments: a folder that is not there yet, a release, a Debian mirror. Makes the folder a Debian with systemd, an SSH server and a
# network card that asks for its address: what a stock image has.
set -eu
root=$1 release=$2 mirror=$3
for attempt in 1 2 3; do
    debootstrap --variant=minbase --include=systemd-sysv,udev,openssh-server "$release" "$root" "$mirror" && break
    sleep 10
done
echo debian >"$root/etc/hostname"
printf '[Match]\nName=e*\n\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/cards.network"
chroot "$root" systemctl enable systemd-networkd
echo root:unasnap | chroot "$root" chpasswd
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
