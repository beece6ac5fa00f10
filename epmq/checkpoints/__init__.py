"""Tensors read lazily from files: safetensors, pickles, LoRA adapters. Knows no model and no layer."""
