"""The shipped AudioSet labels."""

from manifests.audioset import audioset_vocabulary


def test_vocabulary_is_audioset_in_the_order_of_its_csv() -> None:
    vocabulary = audioset_vocabulary()
    assert len(vocabulary) == len(set(vocabulary.ids)) == len(set(vocabulary.names)) == 527
    assert (vocabulary.ids[0], vocabulary.names[0]) == ("/m/09x0r", "Speech")
    assert vocabulary.names[1] == "Male speech, man speaking"
    assert (vocabulary.ids[526], vocabulary.names[526]) == ("/m/07hvw1", "Field recording")


def test_vocabulary_is_read_once() -> None:
    assert audioset_vocabulary() is audioset_vocabulary()
