"""Quantised weights, dequantised when they are read. engine/checkpoint/quantisation.py reads the settings."""
