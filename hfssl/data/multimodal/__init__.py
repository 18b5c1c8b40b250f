"""Pairs: samples that have two sides, each of a modality of its own, such as an image and what is said of it."""
