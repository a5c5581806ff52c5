"""HOG of one clip on one thread, beside scikit-image's."""

import torch
from measure import medians_s, parser, report
from skimage.feature import hog as skimage_hog

from ingest.hog import hog
from manifests.geometry import HogSpec


def main() -> None:
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    spec = HogSpec()
    image = torch.randn(1024, 128, generator=torch.Generator().manual_seed(0))
    pixels = image.numpy()

    def by_skimage() -> object:
        return skimage_hog(
            pixels, orientations=9, pixels_per_cell=(16, 16), cells_per_block=(1, 1), feature_vector=False
        )

    seconds = medians_s({"ours": lambda: hog(image, spec), "scikit-image": by_skimage}, arguments.repeats)
    ratio = seconds["scikit-image"] / seconds["ours"]
    line = (
        f"HOG, 1024 x 128, one thread: ours {seconds['ours'] * 1e3:.2f} ms, "
        f"scikit-image {seconds['scikit-image'] * 1e3:.2f} ms, {ratio:.1f} times as fast (goal: at most 2 ms)"
    )
    report("hog", [line], {**seconds, "ratio": ratio}, arguments.out)


if __name__ == "__main__":
    main()
