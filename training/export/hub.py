"""The files that make an exported folder one of Hugging Face's kind: config.json and preprocessor_config.json."""

from typing import Any

from training.checkpoint import Checkpoint

CONFIG_FILE, PREPROCESSOR_FILE = "config.json", "preprocessor_config.json"
MODEL_TYPE = "acm-sskd"


def hub_config(checkpoint: Checkpoint, description: dict[str, Any]) -> dict[str, Any]:
    """config.json: sizes and labels under the hub's names, and the whole description."""
    model, names = checkpoint.about.model, [label["name"] for label in description["labels"]]
    if len(set(names)) < len(names):  # only ids must differ
        names = [label["id"] for label in description["labels"]]
    kind = "single_label_classification" if description["one_label"] else "multi_label_classification"
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["Student" if names else "AudioFeatureTransformer"],
        "dtype": "float32",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": 4 * model.width,
        "patch_size": model.grid.patch_size,
        "num_mel_bins": model.grid.num_mel_bins,
        "max_length": model.num_frames,
        "parameter_free_attention": model.parameter_free_attention,
        **({"problem_type": kind} if names else {}),
        "id2label": {str(place): name for place, name in enumerate(names)},
        "label2id": {name: place for place, name in enumerate(names)},
        "description": description,
    }


def preprocessor_config(description: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json: from a waveform to what the network takes."""
    of, given = description["preprocessing"], description["input"]
    return {
        "feature_extractor_type": "kaldi-log-mel",
        "sampling_rate": of["sample_rate_hz"],
        "num_samples": given["window_samples"],
        "num_mel_bins": of["num_mel_bins"],
        "max_length": of["num_frames"],
        "frame_length_ms": of["frame_length_ms"],
        "frame_shift_ms": of["frame_shift_ms"],
        "window": of["window"],
        "preemphasis": of["preemphasis"],
        "fft_size": of["fft_size"],
        "low_hz": of["low_hz"],
        "high_hz": of["high_hz"],
        "energy_floor": of["energy_floor"],
        "rounded_to": of["rounded_to"],
        "padding": "repeat",
        "do_normalize": True,
        "mean": of["mean"],
        "std": of["std"],
        "normalization": "(fbank - mean) / std",
    }
