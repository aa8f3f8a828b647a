#!/bin/busybox sh
# The first process: mounts what every program expects, then becomes the agent.

# The kernel panics when its first process ends, so power off instead. A shell whose exec
# fails says why and runs this trap; an exec that succeeds leaves nothing of it behind.
trap 'echo "fledge: /bin/kestrel did not start, powering off"; busybox poweroff -f' EXIT

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The kernel leaves out the rest of an archive that does not fit into memory.
busybox mkdir -p /dev /proc /run /sys /tmp

# This hides the archive's /dev/console, which the kernel opened; programs look for the new one.
# A redirection that fails would end the shell that execs it, so a subshell tries it first.
busybox mount -t devtmpfs -o nosuid devtmpfs /dev
(: </dev/console) && exec <>/dev/console >&0 2>&1

busybox dmesg | busybox grep -q 'Initramfs unpacking failed: write error' &&
    echo "fledge: the archive does not fit into memory and was cut short; give the machine more"

# A mount that fails says so and stops nothing: the kernel may lack that filesystem.
busybox mkdir -p /dev/pts /dev/shm
busybox mount -t proc -o nosuid,nodev,noexec proc /proc
busybox mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
busybox mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
busybox mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /dev/shm
busybox mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
busybox mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run

# The agent asks its workload over this interface, which no network of the host raises.
busybox ifconfig lo 127.0.0.1 up

exec /bin/kestrel
