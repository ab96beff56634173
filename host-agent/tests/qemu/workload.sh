#!/bin/busybox sh
# The guest of the driver's tests: counts, and compares after every step what RAM and disk say.
# A snapshot whose disk and RAM are of different instants shows as "torn" once it is restored.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order
exec >/dev/ttyS0 2>&1
disk() { dd if=/dev/vda bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1; }
dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null
sum=$(md5sum </tmp/noise)
count=$(disk | tr -dc 0-9)
count=${count:-0}
echo "begin $count"
while :; do
    count=$((count + 1))
    echo "$count" | dd of=/dev/vda bs=4096 count=1 conv=sync oflag=direct 2>/dev/null
    [ "$(disk)" = "$count" ] || echo "torn: RAM $count, disk $(disk)"
    [ $((count % 50)) != 0 ] || [ "$sum" = "$(md5sum </tmp/noise)" ] || echo "torn: RAM changed"
    echo "tick $count"
done
