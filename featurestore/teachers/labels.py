"""The vocabulary of a teacher's head, of what its file calls the classes."""

from collections.abc import Mapping

from featurestore.teachers.checkpointfile import CheckpointFile
from manifests.audioset import audioset_vocabulary
from manifests.vocabulary import Label, Vocabulary


def read_vocabulary(file: CheckpointFile, label_of: Mapping[int, str], num_classes: int) -> Vocabulary:
    """The classes in the order of the logits; `label_of` gives each position's MID or name.

    AudioSet's MIDs get their names, and AudioSet's names, where all are such, their MIDs; else a label is its own id.
    Raises InputError unless the positions are 0 .. num_classes - 1 and all labels differ.
    """
    if sorted(label_of) != list(range(num_classes)):
        raise file.error(f"names {len(label_of)} labels, which are not those of the {num_classes} classes of its head")
    labels = [label_of[index] for index in range(num_classes)]
    if repeated := next((label for label in labels if labels.count(label) > 1), None):
        raise file.error(f"names the label {repeated!r} twice")
    known = {label.id: label for label in audioset_vocabulary().labels}
    of_name = {label.name: label for label in known.values()}
    if all(label in of_name for label in labels):
        known = of_name
    return Vocabulary(labels=tuple(known.get(label, Label(id=label, name=label)) for label in labels))
