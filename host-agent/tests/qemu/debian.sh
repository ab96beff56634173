#!/bin/sh
# What stands between the kernel and systemd: the modules that Debian's own initramfs would load.
export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order
mount -t ext4 /dev/vda /disk
umount /proc
mount --move /dev /disk/dev
exec switch_root /disk /sbin/init
