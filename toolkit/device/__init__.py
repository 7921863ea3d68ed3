"""What the device of this process can do: defaults, memory, copies, torch's private names."""
