"""From the formats that people have (Hugging Face checkpoint, PEFT directory) to the bundles that the engine runs."""

from engine.convert.adapter import convert_adapter
from engine.convert.base import convert_base
from engine.convert.errors import ConversionError

__all__ = ["ConversionError", "convert_adapter", "convert_base"]
