"""Spec-Bench (arXiv 2401.07851): answer its questions in several modes, and compare the modes' speed."""
