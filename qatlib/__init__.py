"""Switchable-precision quantization of causal language models: quantizer, layers, training, evaluation, report."""

__version__ = "0.1.0"
