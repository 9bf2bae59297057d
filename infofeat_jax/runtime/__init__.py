"""The interface to the operating system and to JAX's runtime: devices, processes, signals, memory, files, console."""
