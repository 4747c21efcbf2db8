"""From the formats that people have (Hugging Face checkpoint, PEFT directory) to the bundles that the engine runs."""
