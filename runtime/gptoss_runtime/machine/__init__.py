"""The machine: processor, graphics adapters, installed packages, and whether a model fits."""
