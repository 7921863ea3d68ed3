"""The device of this process: defaults, memory, copies, and private names of torch."""
