"""The machine: processor, memory, graphics adapters, installed packages, and the check whether a model fits."""
