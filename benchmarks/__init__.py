"""The memory and the time that each method costs; ``python -m benchmarks`` measures them on this machine."""
