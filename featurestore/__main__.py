"""The program `featurestore`. Its command line is imported when Ctrl-C is guarded against."""

from manifests.start import start


def main() -> None:
    """The console script."""
    start("featurestore.cli")


if __name__ == "__main__":
    main()
