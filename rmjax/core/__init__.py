"""Foundations of all other sub-packages, independent of models and data.

Configuration, InputError, files, start-up of programs, device meshes, processes, pytree paths, safetensors, plotting.
"""
