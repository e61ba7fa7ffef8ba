#!/bin/busybox sh
# The first process of the guest, in its initial RAM disk. It puts together a root from the host's
# file system, which it sees but cannot change, and a layer in memory on top that takes what is
# written; then `boot.sh` goes on there.
#
# Beside it are `modules.order` and `modules/`, to be loaded first; `modules.folder`, where the host
# has all modules of this kernel; `boot.sh` and `job.sh`.

/bin/busybox --install -s /bin
export PATH=/bin

fail() {
    echo "guest: $*"
    poweroff -f
}

mkdir -p /proc /sys /dev /host /changes /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

while read -r module; do
    insmod "/modules/$module" || fail "could not load $module"
done </modules.order

# What changes on the host meanwhile need not be seen: `loose` keeps what was read once.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host ||
    fail "could not mount the host's root"
mount -t tmpfs -o size=75% tmpfs /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /root ||
    fail "could not mount the root"

modules=/root/lib/modules/$(uname -r)
mkdir -p "$modules"
mount --bind "/host$(cat /modules.folder)" "$modules" || fail "could not mount the modules"
mount -t tmpfs tmpfs /root/run
cp /boot.sh /job.sh /root/run
for folder in proc sys dev; do
    mount --move "/$folder" "/root/$folder"
done
exec switch_root /root /bin/sh /run/boot.sh </root/dev/console >/root/dev/console 2>&1
