"""Regenerates convert/gptoss_convert/placement/directml.json for a release of onnxruntime-directml.

registry.py  dumps the kernels that an installed release registers; runs in that release's own Python
sources.py   parses the same from onnxruntime's C++ sources, with the inputs that each kernel reads on the CPU
generate.py  joins both and writes the table
"""
