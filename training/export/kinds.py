"""What a model can be exported as."""

from enum import StrEnum


class Format(StrEnum):
    """What a model can be exported as."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    ONNX = "onnx"
    FOLDER = "folder"
