// SPDX-License-Identifier: GPL-2.0-only
/*
 * Atomic-write limits for disks of the stock virtio_blk driver.
 *
 * VIRTIO has no field for such limits, so virtio_blk never sets them.  This
 * module takes them from the device's configuration space, where tornblkd puts
 * them, and sets them on the disk's queue as the driver would.  README.md has
 * the parameters and the format.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/pci.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <linux/virtio.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_pci.h>

/* Offered by a device whose configuration space has struct atomic_config. */
#define VIRTIO_BLK_F_ATOMIC	56

/* Behind struct virtio_blk_config; in bytes. */
struct atomic_config {
	__le32 unit_min;
	__le32 unit_max;
	__le32 max_bytes;
	__le32 boundary;
};

#define ATOMIC_CONFIG_OFFSET	96
static_assert(sizeof(struct virtio_blk_config) == ATOMIC_CONFIG_OFFSET);

/* In bytes. */
struct atomic_limits {
	u32 unit_min;
	u32 unit_max;
	u32 max_bytes;
	u32 boundary;
};

static char disk_name[DISK_NAME_LEN];
static unsigned int boundary;
/* Parameters of the command line are all known once the module starts. */
static bool started;

/*
 * virtio_pci takes a read behind the end of the configuration space for a bug
 * in the driver.  Where that end is, a modern PCI device says in a capability.
 */
static bool config_has(struct virtio_device *vdev, u32 end)
{
	struct pci_dev *pdev;
	u32 length;
	u8 type;
	int pos;

	if (!vdev->dev.parent || !dev_is_pci(vdev->dev.parent))
		return true;
	pdev = to_pci_dev(vdev->dev.parent);
	for (pos = pci_find_capability(pdev, PCI_CAP_ID_VNDR); pos;
	     pos = pci_find_next_capability(pdev, pos, PCI_CAP_ID_VNDR)) {
		pci_read_config_byte(pdev, pos + VIRTIO_PCI_CAP_CFG_TYPE, &type);
		if (type != VIRTIO_PCI_CAP_DEVICE_CFG)
			continue;
		pci_read_config_dword(pdev, pos + VIRTIO_PCI_CAP_LENGTH, &length);
		return length >= end;
	}
	return true;
}

/* The fields behind the feature bit. */
static int limits_of_feature(struct gendisk *disk, struct virtio_device *vdev,
			     struct atomic_limits *limits)
{
	struct atomic_config config;

	if (!config_has(vdev, ATOMIC_CONFIG_OFFSET + sizeof(config))) {
		pr_err("%s: the device offers feature bit %d, but its configuration space ends before the limits\n",
		       disk->disk_name, VIRTIO_BLK_F_ATOMIC);
		return -EINVAL;
	}
	virtio_cread_bytes(vdev, ATOMIC_CONFIG_OFFSET, &config, sizeof(config));
	limits->unit_min = le32_to_cpu(config.unit_min);
	limits->unit_max = le32_to_cpu(config.unit_max);
	limits->max_bytes = le32_to_cpu(config.max_bytes);
	limits->boundary = le32_to_cpu(config.boundary);
	if (!limits->unit_max) {
		pr_err("%s: the device gives no atomic-write limits (feature bit %d, but unit_max is 0)\n",
		       disk->disk_name, VIRTIO_BLK_F_ATOMIC);
		return -EOPNOTSUPP;
	}
	if (boundary)
		pr_info("%s: boundary=%u is not used: the device gives a boundary itself (%u)\n",
			disk->disk_name, boundary, limits->boundary);
	return 0;
}

/* Byte 33: (1 + log2(unit_max / 512)) << 4 | log2(unit_min / 512). */
static int limits_of_byte(struct gendisk *disk, struct virtio_device *vdev,
			  struct atomic_limits *limits)
{
	const u32 offset = offsetof(struct virtio_blk_config, unused);
	u8 byte = 0;

	if (config_has(vdev, offset + sizeof(byte)))
		virtio_cread_bytes(vdev, offset, &byte, sizeof(byte));
	if (byte >> 4 && byte != 0xff) {
		limits->unit_min = SZ_512 << (byte & 0xf);
		limits->unit_max = SZ_512 << ((byte >> 4) - 1);
	}
	/* Anything else that makes no sense means none, too. */
	if (!limits->unit_max || limits->unit_min > limits->unit_max ||
	    limits->unit_min < queue_logical_block_size(disk->queue)) {
		pr_err("%s: the device gives no atomic-write limits (byte %u of its configuration space is 0x%02x)\n",
		       disk->disk_name, offset, byte);
		return -EOPNOTSUPP;
	}
	limits->max_bytes = limits->unit_max;
	/* There is no room for one in a byte. */
	limits->boundary = boundary;
	return 0;
}

/* What the block layer takes for a bug of the driver, is one of the device. */
static int check_limits(struct block_device *bdev,
			const struct atomic_limits *limits)
{
	const char *why = NULL;

	if (!is_power_of_2(limits->unit_min) || !is_power_of_2(limits->unit_max))
		why = "unit_min and unit_max must be powers of two";
	else if (limits->unit_min < bdev_logical_block_size(bdev))
		why = "unit_min is smaller than a logical block";
	else if (limits->unit_min > limits->unit_max)
		why = "unit_min is larger than unit_max";
	else if (limits->unit_max > limits->max_bytes)
		why = "unit_max is larger than max_bytes";
	else if (limits->max_bytes % bdev_logical_block_size(bdev))
		why = "max_bytes is no multiple of a logical block";
	else if (limits->boundary && !is_power_of_2(limits->boundary))
		why = "the boundary must be a power of two";
	else if (limits->boundary && limits->boundary < limits->max_bytes)
		why = "the boundary must not be smaller than max_bytes";
	if (!why)
		return 0;
	pr_err("%s: unusable limits: %s (unit_min %u, unit_max %u, max_bytes %u, boundary %u)\n",
	       bdev->bd_disk->disk_name, why, limits->unit_min,
	       limits->unit_max, limits->max_bytes, limits->boundary);
	return -EINVAL;
}

/* Gives back the lock that queue_limits_start_update() takes. */
static int commit_limits(struct request_queue *q, struct queue_limits *lim)
{
#ifdef HAVE_QUEUE_LIMITS_COMMIT_UPDATE_FROZEN
	return queue_limits_commit_update_frozen(q, lim);
#else
	/*
	 * Kernels before 6.14 that have it from no stable version, either.
	 * Drivers freeze the queue with the lock held, not the other way round.
	 */
	int err;

	blk_mq_freeze_queue(q);
	err = queue_limits_commit_update(q, lim);
	blk_mq_unfreeze_queue(q);
	return err;
#endif
}

/* Sets @limits; then they hold what was set before.  unit_max is 0 for none. */
static int swap_limits(struct request_queue *q, struct atomic_limits *limits)
{
	struct queue_limits lim = queue_limits_start_update(q);
	struct atomic_limits old = {
		.unit_min = lim.atomic_write_hw_unit_min,
		.unit_max = lim.atomic_write_hw_unit_max,
		.max_bytes = lim.atomic_write_hw_max,
		.boundary = lim.atomic_write_hw_boundary,
	};
	int err;

#ifdef BLK_FEAT_ATOMIC_WRITES
	/* Without it, newer kernels take no notice of the fields. */
	lim.features &= ~BLK_FEAT_ATOMIC_WRITES;
	if (limits->unit_max)
		lim.features |= BLK_FEAT_ATOMIC_WRITES;
#endif
	lim.atomic_write_hw_unit_min = limits->unit_min;
	lim.atomic_write_hw_unit_max = limits->unit_max;
	lim.atomic_write_hw_max = limits->max_bytes;
	lim.atomic_write_hw_boundary = limits->boundary;
	err = commit_limits(q, &lim);
	if (!err)
		*limits = old;
	return err;
}

static bool is_dead(struct gendisk *disk)
{
	return test_bit(GD_DEAD, &disk->state);
}

static int set_limits(struct block_device *bdev,
		      const struct atomic_limits *limits)
{
	const char *name = bdev->bd_disk->disk_name;
	struct request_queue *q = bdev_get_queue(bdev);
	struct atomic_limits old = *limits;
	int err;

	err = swap_limits(q, &old);
	if (err) {
		pr_err("%s: the kernel refused the limits: %pe\n", name, ERR_PTR(err));
		return err;
	}

	/* It may also have dropped them or made them smaller, and not say so. */
	if (!queue_atomic_write_unit_max_bytes(q)) {
		pr_err("%s: the kernel refused the limits (unit_min %u, unit_max %u, max_bytes %u, boundary %u)\n",
		       name, limits->unit_min, limits->unit_max,
		       limits->max_bytes, limits->boundary);
		err = swap_limits(q, &old);
		if (err)
			pr_err("%s: the limits of before cannot be set again: %pe\n",
			       name, ERR_PTR(err));
		return -EINVAL;
	}
	if (is_dead(bdev->bd_disk)) {
		pr_err("%s: the disk went away\n", name);
		return -ENODEV;
	}
	pr_info("%s: atomic writes of %u to %u bytes, at most %u in a request, boundary %u\n",
		name, queue_atomic_write_unit_min_bytes(q),
		queue_atomic_write_unit_max_bytes(q),
		queue_atomic_write_max_bytes(q),
		queue_atomic_write_boundary_bytes(q));
	if (queue_atomic_write_unit_min_bytes(q) != limits->unit_min ||
	    queue_atomic_write_unit_max_bytes(q) != limits->unit_max ||
	    queue_atomic_write_max_bytes(q) != limits->max_bytes ||
	    queue_atomic_write_boundary_bytes(q) != limits->boundary)
		pr_warn("%s: that is less than the device gives (unit_min %u, unit_max %u, max_bytes %u, boundary %u); a request here has at most %u segments and %u sectors (max_segments, max_hw_sectors)\n",
			name, limits->unit_min, limits->unit_max,
			limits->max_bytes, limits->boundary,
			queue_max_segments(q), queue_max_hw_sectors(q));
	return 0;
}

/* The device of a disk, with a reference; NULL for one that is being removed. */
static struct device *device_of(struct gendisk *disk)
{
	struct device *dev = NULL;

	/* The parent is there as long as del_gendisk() has not begun. */
	mutex_lock(&disk->open_mutex);
	if (!is_dead(disk))
		dev = get_device(disk_to_dev(disk)->parent);
	mutex_unlock(&disk->open_mutex);
	return dev;
}

/* How many u64 virtio_get_features() fills: the name has changed twice. */
#if defined(VIRTIO_FEATURES_U64S)
#define FEATURES_U64S	VIRTIO_FEATURES_U64S
#elif defined(VIRTIO_FEATURES_QWORDS)
#define FEATURES_U64S	VIRTIO_FEATURES_QWORDS
#elif defined(VIRTIO_FEATURES_DWORDS)
#define FEATURES_U64S	VIRTIO_FEATURES_DWORDS
#endif

/* Offered, not negotiated: virtio_has_feature() is for what the driver knows. */
static bool offers_limits(struct virtio_device *vdev)
{
	/* Older kernels have 64 bits, and not the function. */
#ifdef FEATURES_U64S
	u64 features[FEATURES_U64S] = {};

	virtio_get_features(vdev, features);
	return features[0] & BIT_ULL(VIRTIO_BLK_F_ATOMIC);
#else
	return vdev->config->get_features(vdev) & BIT_ULL(VIRTIO_BLK_F_ATOMIC);
#endif
}

static int read_limits(struct gendisk *disk, struct atomic_limits *limits)
{
	struct device *dev = device_of(disk);
	struct virtio_device *vdev;
	int err = -ENODEV;

	if (!dev || strcmp(dev_bus_name(dev), "virtio") ||
	    dev_to_virtio(dev)->id.device != VIRTIO_ID_BLOCK) {
		pr_err("%s: not a virtio-blk disk\n", disk->disk_name);
		goto out;
	}
	vdev = dev_to_virtio(dev);
	/* Against unplugging. */
	device_lock(dev);
	if (!dev->driver)
		pr_err("%s: the disk went away\n", disk->disk_name);
	else if (offers_limits(vdev))
		err = limits_of_feature(disk, vdev, limits);
	else
		err = limits_of_byte(disk, vdev, limits);
	device_unlock(dev);
out:
	put_device(dev);
	return err;
}

static int apply(const char *name)
{
	char path[sizeof("/dev/") + DISK_NAME_LEN];
	struct atomic_limits limits = {};
	struct block_device *bdev;
	struct file *file;
	int err;

	snprintf(path, sizeof(path), "/dev/%s", name);
	file = bdev_file_open_by_path(path, BLK_OPEN_READ, NULL, NULL);
	if (IS_ERR(file)) {
		pr_err("%s: cannot open %s: %pe\n", name, path, file);
		return PTR_ERR(file);
	}
	bdev = file_bdev(file);
	if (bdev_is_partition(bdev)) {
		pr_err("%s: a partition has the limits of its disk: give %s\n",
		       name, bdev->bd_disk->disk_name);
		err = -EINVAL;
		goto out;
	}
	err = read_limits(bdev->bd_disk, &limits);
	if (!err)
		err = check_limits(bdev, &limits);
	if (!err)
		err = set_limits(bdev, &limits);
out:
	bdev_fput(file);
	return err;
}

static int disk_set(const char *val, const struct kernel_param *kp)
{
	char given[sizeof("/dev/") + DISK_NAME_LEN];
	const char *name;
	ssize_t len;
	int err;

	len = strscpy(given, val, sizeof(given));
	name = strim(given);
	if (!strncmp(name, "/dev/", 5))
		name += 5;
	if (len < 0 || !*name || strlen(name) >= sizeof(disk_name)) {
		pr_err("disk=%s: not the name of a disk\n", name);
		return -EINVAL;
	}
	if (started) {
		err = apply(name);
		if (err)
			return err;
	}
	strscpy(disk_name, name, sizeof(disk_name));
	return 0;
}

static int disk_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%s\n", disk_name);
}

static const struct kernel_param_ops disk_ops = {
	.set = disk_set,
	.get = disk_get,
};

module_param_cb(disk, &disk_ops, NULL, 0644);
MODULE_PARM_DESC(disk, "disk whose limits are set now: vda");
module_param(boundary, uint, 0644);
MODULE_PARM_DESC(boundary, "atomic boundary in bytes, for disks that cannot tell theirs (0: none)");

static int __init tornblk_atomic_init(void)
{
	started = true;
	return *disk_name ? apply(disk_name) : 0;
}

/* The limits stay: they are the disk's. */
static void __exit tornblk_atomic_exit(void)
{
}

module_init(tornblk_atomic_init);
module_exit(tornblk_atomic_exit);

MODULE_DESCRIPTION("Atomic-write limits for virtio-blk disks that tell them");
MODULE_AUTHOR("The tornblk contributors");
MODULE_LICENSE("GPL");
