"""Augmentation of batches on the device: colours, RandAugment, erasing, mixing."""
