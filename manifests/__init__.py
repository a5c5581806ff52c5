"""Tables of clips and labels: which clips exist, no audio and no torch."""
