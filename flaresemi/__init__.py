"""flaresemi: from a few labeled scans and many unlabeled ones to a fast multi-organ segmenter."""

__version__ = "0.1.0"
