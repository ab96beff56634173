# Arguments: a folder that is not there yet, a Debian mirror. Makes the folder a Debian sid with the stock VirtualBox in it, for no
# release of Debian has it. To be run in a mount namespace of its own, so that nothing stays mounted.
set -eu
root=$1 mirror=$2
for attempt in 1 2 3; do
    debootstrap --variant=minbase --components=main,contrib sid "$root" "$mirror" && break
    sleep 10
done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
# A mirror that keeps the past has release files that are out of date.
echo 'Acquire::Check-Valid-Until "false"; Acquire::Retries "3";' >"$root/etc/apt/apt.conf.d/99mirror"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
inside() { chroot "$root" env DEBIAN_FRONTEND=noninteractive "$@"; }
inside apt-get -q update
# The package itself wants to build a kernel module: its libraries are installed, and it is only unpacked.
libraries=$(inside apt-cache depends virtualbox virtualbox-qt |
    awk '/^  Depends: [a-z]/ { print $2 }' | grep -vE '^(virtualbox.*|systemd)$' | sort -u)
inside apt-get -q install -y --no-install-recommends $libraries xvfb xkb-data x11-xkb-utils
inside sh -euc 'cd /var/cache/apt/archives
    apt-get -q -o APT::Sandbox::User=root download virtualbox virtualbox-qt
    for package in virtualbox_*.deb virtualbox-qt_*.deb; do dpkg -x "$package" /; done
    rm virtualbox*.deb
    apt-get clean'
# Without the kernel module only the front end with windows interprets a machine. It insists on a screen that it draws nothing on.
cat >"$root/usr/lib/virtualbox/VBoxHeadless" <<'FRONT'
#!/bin/sh
vm=
while [ $# -gt 0 ]; do
    case $1 in --startvm | -startvm | -s) vm=$2 && shift ;; esac
    shift
done
Xvfb ":$$" -nolisten tcp >/dev/null 2>&1 &
screen=$!
while [ ! -S "/tmp/.X11-unix/X$$" ] && kill -0 $screen; do sleep 0.05; done
{ while kill -0 $$; do sleep 0.2; done; kill $screen; } >/dev/null 2>&1 &
export DISPLAY=":$$" QT_QPA_PLATFORM=offscreen XDG_RUNTIME_DIR=/tmp
exec /usr/lib/virtualbox/VirtualBoxVM --startvm "$vm" --execute-all-in-iem --driverless --no-startvm-errormsgbox
FRONT
chmod +x "$root/usr/lib/virtualbox/VBoxHeadless"
