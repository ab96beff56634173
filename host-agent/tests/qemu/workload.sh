#!/bin/busybox sh
# The guest of the driver's tests: counts, and compares after every step what RAM and disk say.
# Block 8 + N of the disk holds the number N, block 0 the last one. A disk that is older than the RAM it was restored
# with lacks a number that was written, a younger one has a number that is still to be written: both are "torn".
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order
exec >/dev/ttyS0 2>&1
# With the word "agent" on the kernel's command line the guest agent runs, too; with "allow" it lets operators in.
if grep -q " agent" /proc/cmdline; then
    mount -t sysfs sys /sys
    allow=
    grep -q " allow" /proc/cmdline && allow="--allow exec,files"
    unasnap-guest run $allow &
fi
blocks() { dd if=/dev/vda bs=4096 skip="$1" count="$2" iflag=direct 2>/dev/null | tr -d '\0'; }
write() { echo "$count" | dd of=/dev/vda bs=4096 seek="$1" count=1 conv=sync oflag=direct 2>/dev/null; }
dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null
sum=$(md5sum </tmp/noise)
count=$(blocks 0 1)
count=${count:-0}
# QEMU may have been killed between the two writes of a step.
[ -z "$(blocks $((count + 9)) 1)" ] || count=$((count + 1))
echo "begin $count"
before=$(blocks $((count + 8)) 1)
while :; do
    count=$((count + 1))
    write $((count + 8))
    write 0
    expected=$(printf '%s\n%s' "$before" "$count")
    [ -n "$before" ] || expected=$count
    found=$(blocks $((count + 7)) 4)
    [ "$found" = "$expected" ] || echo "torn: RAM says $count, disk $found"
    [ $((count % 50)) != 0 ] || [ "$sum" = "$(md5sum </tmp/noise)" ] || echo "torn: RAM changed"
    before=$count
    echo "tick $count"
    # With the word "leaves" the guest shuts down by itself.
    [ $count != 60 ] || ! grep -q " leaves" /proc/cmdline || poweroff -f
done
