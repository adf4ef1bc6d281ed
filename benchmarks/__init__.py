"""What does each method cost, in memory and in time?  ``python -m benchmarks`` measures it on this machine."""
