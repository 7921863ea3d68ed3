"""Augment batches on the device: colour changes, RandAugment, random erasing, mixup and cutmix."""
