"""Shared-base inference on the device. Imports nothing heavy, so that `engine.artifact` opens without onnxruntime."""
