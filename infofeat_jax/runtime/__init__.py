"""What the operating system and JAX's runtime need: devices, processes, signals, locks, memory, files, the console."""
