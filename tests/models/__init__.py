"""Where models and text come from, their layers, and what others quantized."""
