"""EfficientAT against its reference implementation, and the files that it must refuse."""

import hashlib
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featurestore.teachers.base import Teacher, TeacherOutput, WaveformInput
from featurestore.teachers.efficientat import (
    ROWS,
    BlockSizes,
    LogMel,
    LogMelSettings,
    MobileNet,
    Sizes,
    load_efficientat,
    read_sizes,
)
from manifests.audioset import audioset_vocabulary
from manifests.errors import InputError

SHARED = Path(__file__).parents[3].parent / "shared"
WEIGHTS = SHARED / "data" / "weights" / "mn04_as_mAP_432.pt"
GOLDEN = SHARED / "golden" / "mn04.npz"
needs_golden = pytest.mark.skipif(
    not (WEIGHTS.exists() and GOLDEN.exists()), reason="needs ../shared/golden/mn04.npz and the mn04 weights"
)

# Not the released widths, and with expansion where mn04 has none and the other way round.
SMALL = Sizes(
    stem=3,
    blocks=tuple(
        BlockSizes(0 if i == 1 else 5 + i, 2 if row.squeezes else 0, 3 + i // 4) for i, row in enumerate(ROWS)
    ),
    embedding=11,
    head=7,
    classes=4,
)


def small_state(sizes: Sizes = SMALL) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return MobileNet(sizes).state_dict()


def save(state: object, folder: Path) -> Path:
    path = folder / "small.pt"
    torch.save(state, path)
    return path


def tone(num_samples: int, batch_size: int = 2) -> Tensor:
    time = torch.arange(num_samples) / 32000
    return torch.stack([(time * 2764.6 * (1 + i)).sin() * 0.5 for i in range(batch_size)])


def outputs(teacher: Teacher, batch: Tensor) -> tuple[Tensor, Tensor]:
    output: TeacherOutput = teacher.embed(batch)
    assert output.logits is not None
    return output.embedding, output.logits


@pytest.fixture
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in ("waveform_32k", "mel", "embedding", "logits")}


@needs_golden
def test_log_mel_is_the_references(golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(LogMel(LogMelSettings())(golden["waveform_32k"]), golden["mel"], atol=1e-4, rtol=0)


@needs_golden
def test_released_weights_give_the_references_outputs(golden: dict[str, Tensor]) -> None:
    teacher = load_efficientat(WEIGHTS)
    assert teacher.vocabulary == audioset_vocabulary()
    embedding, logits = outputs(teacher, golden["waveform_32k"])
    torch.testing.assert_close(embedding, golden["embedding"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, golden["logits"], atol=1e-4, rtol=0)


@needs_golden
def test_a_clip_alone_is_as_in_its_batch(golden: dict[str, Tensor]) -> None:
    teacher = load_efficientat(WEIGHTS)
    batch = outputs(teacher, golden["waveform_32k"])
    for i in range(len(golden["waveform_32k"])):
        alone = outputs(teacher, golden["waveform_32k"][i : i + 1])
        for one, all_ in zip(alone, batch, strict=True):
            torch.testing.assert_close(one[0], all_[i], atol=1e-4, rtol=0)


def test_sizes_are_read_off_the_tensors() -> None:
    assert read_sizes(small_state()) == SMALL


def test_any_width_round_trips(tmp_path: Path) -> None:
    state = small_state()
    path = save(state, tmp_path)
    teacher = load_efficientat(path)
    assert (teacher.name, teacher.input, teacher.embedding_dim) == ("efficientat", WaveformInput(32000), 11)
    assert teacher.vocabulary is None
    embedding, logits = outputs(teacher, tone(32000))

    reference = MobileNet(SMALL).eval()
    reference.load_state_dict(state)
    with torch.inference_mode():
        expected = reference(LogMel(LogMelSettings())(tone(32000))[:, None])
    assert embedding.shape == (2, 11)
    assert logits.shape == (2, 4)
    torch.testing.assert_close((embedding, logits), expected)


def test_the_teacher_is_frozen_float32(tmp_path: Path) -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in small_state().items()}
    teacher = load_efficientat(save(state, tmp_path))
    first, again = outputs(teacher, tone(4000).double()), outputs(teacher, tone(4000).double())
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert all(output.dtype == torch.float32 and not output.requires_grad for output in first)


def test_provenance_names_the_file_and_the_input(tmp_path: Path) -> None:
    path = save(small_state(), tmp_path)
    provenance = load_efficientat(path).provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["checkpoint"] == "small.pt"
    assert provenance["checkpoint_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["format"] == 1
    assert (provenance["input"]["sample_rate_hz"], provenance["input"]["num_mel_bins"]) == (32000, 128)


@pytest.mark.parametrize("num_samples", [0, 1, 100, 513, 514, 1023])
def test_short_waveforms_are_followed_by_silence(tmp_path: Path, num_samples: int) -> None:
    teacher = load_efficientat(save(small_state(), tmp_path))
    waveform = tone(num_samples)
    padded = torch.cat([waveform, torch.zeros(2, max(0, 514 - num_samples))], dim=1)
    torch.testing.assert_close(outputs(teacher, waveform), outputs(teacher, padded), atol=0, rtol=0)
    assert all(output.isfinite().all() for output in outputs(teacher, waveform))


def test_the_log_mel_has_a_frame_every_hop() -> None:
    image = LogMel(LogMelSettings())(torch.zeros(1, 32000))
    assert image.shape == (1, 128, 100)
    torch.testing.assert_close(image, torch.full_like(image, (np.log(1e-5) + 4.5) / 5))


class Shell:
    """Unpickled with code allowed, it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker, plain = tmp_path / "ran", tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Shell(marker)))
    for path in (plain, save({"features.0.0.weight": Shell(marker)}, tmp_path)):
        with pytest.raises(InputError, match=r"cannot read tensors from .*\.pt"):
            load_efficientat(path)
    assert not marker.exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(InputError, match=re.escape(f"cannot open the checkpoint {path}: ")):
            load_efficientat(path)


@pytest.mark.parametrize("content", [b"", b"no weights here", b"PK\x03\x04", bytes(range(256)) * 8, b"\x80\x02."])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read tensors from .*garbage\.pt.*download it from"):
        load_efficientat(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float, zipped: bool) -> None:
    path = tmp_path / "cut.pt"
    torch.save(small_state(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=r"cannot read tensors from .*cut\.pt"):
        load_efficientat(path)


@pytest.mark.parametrize(
    "state", [[torch.zeros(1)], {"model": {"weight": torch.zeros(1)}}, {"epoch": 3}, torch.ones(1)]
)
def test_other_torch_files_are_refused(tmp_path: Path, state: object) -> None:
    with pytest.raises(InputError, match=r"small\.pt does not hold a flat table of tensors"):
        load_efficientat(save(state, tmp_path))


@pytest.mark.parametrize("key", ["features.4.block.1.0.weight", "features.16.1.running_var", "classifier.5.weight"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    state = small_state()
    del state[key]
    with pytest.raises(InputError, match=rf"small\.pt does not fit.*{key} is missing"):
        load_efficientat(save(state, tmp_path))


def test_an_extra_key_is_named(tmp_path: Path) -> None:
    state = small_state() | {"features.17.0.weight": torch.zeros(2)}
    with pytest.raises(InputError, match=r"features\.17\.0\.weight is not part of the network \(differences: 1\)"):
        load_efficientat(save(state, tmp_path))


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    state = small_state() | {"features.0.0.weight": torch.zeros(3, 2, 3, 3)}
    with pytest.raises(InputError, match=r"features\.0\.0\.weight has shape \(3, 2, 3, 3\), expected \(3, 1, 3, 3\)"):
        load_efficientat(save(state, tmp_path))


def test_a_depthwise_width_other_than_its_inputs_is_refused(tmp_path: Path) -> None:
    wider = small_state() | {"features.2.block.0.0.weight": torch.zeros(9, 1, 3, 3)}
    with pytest.raises(
        InputError, match=r"features\.2\.block\.0\.0\.weight has shape \(9, 1, 3, 3\), expected \(3, 1, "
    ):
        load_efficientat(save(wider, tmp_path))


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_a_tensor_without_channels_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = small_state() | {"classifier.2.weight": torch.zeros(shape)}
    with pytest.raises(InputError, match=r"classifier\.2\.weight is missing or empty"):
        load_efficientat(save(state, tmp_path))
