# What a distribution's own start does before anybody can log in, as far as limpid and its tests
# need it; then the job, then the end.
#
# It runs as process 1 in the root that `init.sh` has put together. Its own words go to the console.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
ip link set lo up

# The kernel's own limit is 4096; systemd raises it to this (its NEWS, v240).
ulimit -n 524288

# Most hosts have these loaded. Any other is loaded by the kernel itself when it is needed.
for module in tun nf_conntrack br_netfilter; do
    modprobe "$module"
done

# A port to the host, by the name it was given there.
port() {
    for folder in /sys/class/virtio-ports/*; do
        if [ "$(cat "$folder/name")" = "$1" ]; then
            echo "/dev/${folder##*/}"
        fi
    done
}
output=$(port output)
status=$(port status)

echo up >"$status"
cd /
sh /run/job.sh >"$output" 2>&1 </dev/null
echo "ended $?" >"$status"

echo o >/proc/sysrq-trigger
# Process 1 must not end before the machine is off.
sleep 60
