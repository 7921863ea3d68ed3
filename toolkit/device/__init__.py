"""The CPU or GPU of a process: default settings, memory, copies to the device, and private names of torch."""
