"""What is known of the terms of public datasets, and which of them a store's clips are from."""

from collections.abc import Collection
from dataclasses import dataclass

from manifests.audioset import SPLITS, audioset_lists
from manifests.vggsound import VGGSOUND_LISTS


@dataclass(frozen=True)
class Licence:
    """`hub_id` is Hugging Face's id; `url` leads to the text; `terms` says what it covers; `citation` is BibTeX."""

    hub_id: str
    name: str
    url: str
    terms: str
    citation: str


@dataclass(frozen=True)
class Terms:
    """What is known of the terms of a store's clips: `licences` by dataset, and the datasets with `unstated` ones.

    Neither tells of all clips where the store's name is none of those datasets': a store may be a subset or a merge
    under a new name.
    """

    licences: dict[str, Licence]
    unstated: tuple[str, ...]


_ESC = (
    "@inproceedings{piczak2015esc, title={{ESC}: Dataset for Environmental Sound Classification}, "
    "author={Piczak, Karol J.}, booktitle={ACM Multimedia}, pages={1015--1018}, year={2015}, "
    "doi={10.1145/2733373.2806390}}"
)

LICENCES = {
    "audioset": Licence(
        hub_id="other",
        name="audioset-labels-cc-by-4.0",
        url="https://creativecommons.org/licenses/by/4.0/",
        terms="AudioSet's labels and lists are Google's, under CC BY 4.0. The sounds are not covered by it: they "
        "belong to those who uploaded the videos, and so does whatever of them these features and audio members hold.",
        citation="@inproceedings{gemmeke2017audioset, title={Audio Set: An ontology and human-labeled dataset for "
        "audio events}, author={Gemmeke, Jort F. and Ellis, Daniel P. W. and Freedman, Dylan and Jansen, Aren and "
        "Lawrence, Wade and Moore, R. Channing and Plakal, Manoj and Ritter, Marvin}, booktitle={ICASSP}, "
        "pages={776--780}, year={2017}, doi={10.1109/ICASSP.2017.7952261}}",
    ),
    "vggsound": Licence(
        hub_id="other",
        name="vggsound-labels-cc-by-4.0",
        url="https://creativecommons.org/licenses/by/4.0/",
        terms="VGGSound's labels and lists are its authors', under CC BY 4.0. The sounds are not covered by it: they "
        "belong to those who uploaded the videos, and so does whatever of them these features and audio members hold.",
        citation="@inproceedings{chen2020vggsound, title={{VGGSound}: A Large-Scale Audio-Visual Dataset}, "
        "author={Chen, Honglie and Xie, Weidi and Vedaldi, Andrea and Zisserman, Andrew}, booktitle={ICASSP}, "
        "pages={721--725}, year={2020}, doi={10.1109/ICASSP40776.2020.9053174}}",
    ),
    "esc50": Licence(
        hub_id="cc-by-nc-3.0",
        name="CC BY-NC 3.0",
        url="https://creativecommons.org/licenses/by-nc/3.0/",
        terms="ESC-50 is Karol J. Piczak's, under CC BY-NC 3.0: not for commercial use. Each recording is its "
        "Freesound author's, credited in the LICENSE file of ESC-50.",
        citation=_ESC,
    ),
    "esc10": Licence(
        hub_id="cc-by-3.0",
        name="CC BY 3.0",
        url="https://creativecommons.org/licenses/by/3.0/",
        terms="ESC-10 is Karol J. Piczak's, under CC BY 3.0. Each recording is its Freesound author's, credited in the "
        "LICENSE file of ESC-50.",
        citation=_ESC,
    ),
}

_LISTS = {
    "audioset": {*audioset_lists(SPLITS)},
    "vggsound": {*VGGSOUND_LISTS, "vggsound_train.csv", "vggsound_test.csv"},
}


def terms_of(dataset: str, lists: Collection[str]) -> Terms:
    """The terms of a store by its name, in which a merge's has its parts' joined by '+', and its lists' file names."""
    named = dataset.split("+")
    listed = [name for name, files in _LISTS.items() if not files.isdisjoint(lists)]
    licences = {name: LICENCES[name] for name in (*named, *listed) if name in LICENCES}
    # A new name alone says nothing of what is in it, where its lists do.
    is_renamed = len(named) == 1 and bool(listed)
    return Terms(licences, () if is_renamed else tuple(name for name in named if name not in LICENCES))
