"""The page of one or several runs (`training report`): curves, reconstructions, confusions, comparison."""
