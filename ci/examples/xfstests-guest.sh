#!/bin/bash
# The first process in the guest of ci/examples/xfstests. /share is the host's folder $OUT.
set -u
off() {
    sync
    echo o >/proc/sysrq-trigger
    sleep 60
}
trap off EXIT
die() {
    echo "guest: $*"
    exit 1
}

hostname tornblk
/usr/lib/systemd/systemd-udevd --daemon 2>/dev/null
udevadm trigger --type=all --action=add
udevadm settle
mount LABEL=xfstests /xfstests || die "xfstests cannot be mounted"

# The SCSI disk with this serial number.
disk() {
    local all
    for _ in {1..100}; do
        for all in /sys/block/sd*; do
            grep -qas "$1" "$all/device/vpd_pg80" && echo "/dev/${all##*/}" && return
        done
        sleep 0.1
    done
    return 1
}
test=$(disk test) || die "the disk TEST is not there"
scratch=$(disk scratch) || die "the disk SCRATCH is not there"
logwrites=$(disk logwrites) || die "the disk LOGWRITES is not there"

{
    echo "kernel $(uname -r)"
    dpkg-query -W -f '${Package} ${Version}\n' e2fsprogs fio xfsprogs
    grep -H . "/sys/block/${scratch#/dev/}"/queue/atomic_write_* "/sys/block/${scratch#/dev/}/queue/logical_block_size"
} | tee /share/versions

section() { # NAME FSTYP MKFS-OPTIONS
    printf '[%s]\nFSTYP=%s\nMKFS_OPTIONS="%s"\n' "$1" "$2" "$3"
    printf 'TEST_DEV=%s\nTEST_DIR=/mnt/test\nSCRATCH_DEV=%s\nSCRATCH_MNT=/mnt/scratch\n' "$test" "$scratch"
    printf 'LOGWRITES_DEV=%s\nRECREATE_TEST_DEV=true\nRESULT_BASE=/share/results\n\n' "$logwrites"
}
cd /xfstests || die "there is no xfstests"
mapfile -t options </share/options
read -ra sections </share/sections
for name in "${sections[@]}"; do
    case $name in
    # Clusters of 16 blocks, whatever a block is: no atomic write is longer there than a cluster.
    ext4-bigalloc) section "$name" ext4 "-O bigalloc" ;;
    *) section "$name" "$name" "" ;;
    esac
done >local.config
# It wants to find the first one's file system on TEST, and makes the others' itself.
case ${sections[0]} in
xfs) mkfs.xfs -q -f "$test" ;;
*) mkfs.ext4 -q -F "$test" ;;
esac || die "TEST cannot be formatted"
./check "${options[@]}" 2>&1 | tee /share/check.log
echo "${PIPESTATUS[0]}" >/share/ended
