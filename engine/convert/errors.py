"""What can be wrong with a model or adapter that people publish. Each error says what to mend.

`code` is stable: it travels in problem documents and reports. The message says what was found, `hint` what to do.
"""

from __future__ import annotations

from engine.errors import InvalidInputError


class ConversionError(InvalidInputError):
    """The source cannot be converted. `hint` is a sentence for the person who made it."""

    code = "conversion_failed"
    hint = "Check the source and try again."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Take the class's hint unless a better one is given."""
        super().__init__(message)
        self.hint = hint or type(self).hint


class NotACheckpointError(ConversionError):
    """The directory is no Hugging Face checkpoint, or one of its files is damaged."""

    code = "not_a_checkpoint"
    hint = "Give the directory that save_pretrained() wrote: config.json, *.safetensors and tokenizer.json."


class NotAnAdapterError(ConversionError):
    """The directory is no PEFT adapter, or one of its files is damaged."""

    code = "not_an_adapter"
    hint = "Give the directory that PEFT's save_pretrained() wrote: adapter_config.json and adapter_model.safetensors."


class UnknownArchitectureError(ConversionError):
    """The model family is not one of those that the engine runs."""

    code = "unknown_architecture"
    hint = "Supported are causal language models of the families Qwen3, Qwen2, Llama and Mistral."


class UnsupportedConfigError(ConversionError):
    """The family is known, but this configuration of it is not supported."""

    code = "unsupported_config"
    hint = "Choose a checkpoint without this option."


class MissingTensorError(ConversionError):
    """A tensor that the configuration calls for is not there."""

    code = "missing_tensor"
    hint = "Save the model again with save_pretrained(); all shards must be present."


class UnexpectedTensorError(ConversionError):
    """A tensor that the configuration does not explain; leaving it out would change the model silently."""

    code = "unexpected_tensor"
    hint = "Check that config and weights belong together."


class ShapeMismatchError(ConversionError):
    """A tensor does not have the shape that the configuration calls for."""

    code = "shape_mismatch"
    hint = "Check that config and weights belong together."


class NotFiniteError(ConversionError):
    """A tensor holds NaN or infinity, or numbers too large for its format."""

    code = "not_finite"
    hint = "The training has diverged or the file is damaged: save the model again from a good checkpoint."


class PickleFileError(ConversionError):
    """Weights in Python's pickle format, which runs code when it is opened. It is never opened here."""

    code = "pickle_file"
    hint = "Save with safe_serialization=True so that the weights are *.safetensors."


class UnsupportedTokenizerError(ConversionError):
    """The tokenizer or chat template cannot be used."""

    code = "unsupported_tokenizer"
    hint = "Save a fast tokenizer with save_pretrained(), so that tokenizer.json is there."


class WrongBaseError(ConversionError):
    """The adapter was trained on another base model."""

    code = "wrong_base"
    hint = "Publish the adapter for the base that it was trained on, or train it on this one."


class UnsupportedPeftOptionError(ConversionError):
    """A PEFT option that the engine does not run, named in the message."""

    code = "unsupported_peft_option"
    hint = "Train a plain LoRA on the linear layers of attention and MLP, without this option."


class NoModuleMatchedError(ConversionError):
    """The adapter changes no module of the base."""

    code = "no_module_matched"
    hint = "target_modules must name linear layers of the base: {q,k,v,o}_proj or {gate,up,down}_proj."


class AllZeroError(ConversionError):
    """The adapter is zero everywhere, so that it changes nothing."""

    code = "all_zero"
    hint = "Every lora_B is zero, as before the first training step: publish a trained adapter."


class BadExtrasError(ConversionError):
    """`socle.json` beside the adapter is not what it should be."""

    code = "bad_extras"
    hint = 'socle.json may hold {"business": {...}, "golden_prompts": [{"messages": [...], "answer": "..."}]}.'
