"""A stand-in for Volant's agent, which does in stages 1 and 2 what that does."""

AGENT = rb"""#!/bin/busybox sh
b=/bin/busybox
die() { echo "agent: $*"; exit 1; }
parameter() {
    for each in $($b cat /proc/cmdline); do
        case $each in "$1"=*) echo "${each#*=}" ;; esac
    done
}
$b mount -t proc proc /proc 2>/dev/null
$b mount -t sysfs sysfs /sys 2>/dev/null
$b mount -t devtmpfs devtmpfs /dev 2>/dev/null
device=$(parameter volant.rootfs_device)
if [ "$device" ] && [ "$1" != stage2 ]; then
    root=/mnt/volant-root
    echo "agent: stage 1 as process $$"
    $b mkdir -p $root
    $b mount -t $(parameter volant.rootfs_fstype) /dev/$device $root || die "mount rootfs failed"
    $b mkdir -p $root/usr/local/bin
    $b cp /bin/kestrel $root/usr/local/bin/kestrel || die "copy self failed"
    exec $b switch_root $root /usr/local/bin/kestrel stage2
fi
echo "agent: stage 2 as process $$"
for each in "devpts /dev/pts" "tmpfs /dev/shm" "tmpfs /run" "tmpfs /tmp"; do
    set -- $each
    $b mkdir -p $2
    $b mount -t $1 $1 $2 2>/dev/null
done
packed=$(parameter volant.manifest | $b tr _- /+)
[ "$packed" ] || die "no manifest"
while [ $((${#packed} % 4)) != 0 ]; do packed=$packed=; done
manifest=$(echo "$packed" | $b base64 -d | $b gunzip)
eval "set -- $(echo "$manifest" | $b sed 's/.*"entrypoint":\[\([^]]*\)\].*/\1/; s/,/ /g')"
variables=$(echo "$manifest" | $b sed -n 's/.*"env":{"\([^}]*\)"}.*/\1/p' |
    $b sed 's/","/\n/g; s/":"/=/g')
folder=$(echo "$manifest" | $b sed -n 's/.*"workdir":"\([^"]*\)".*/\1/p')
url=$(echo "$manifest" | $b sed -n 's/.*"base_url":"\([^"]*\)".*/\1/p')
export PATH=/usr/local/bin:/usr/bin:/bin
while read -r each; do
    [ "$each" ] && export "$each"
done <<EOF
$variables
EOF
cd "${folder:-/}"
echo "agent: starts $*"
"$@" &
workload=$!
[ "$url" ] || { wait; exit; }
until $b wget -q -O /dev/null "$url"; do
    $b sleep 1
    kill -0 $workload 2>/dev/null || die "the workload ended"
done
echo "agent: the workload answers at $url"
wait
"""
"""A script for busybox. On a disk it needs a /bin/busybox in stage 2, unlike the real one."""
