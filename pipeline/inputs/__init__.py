"""Reads ImageNet in every layout that people have it in, as one kind of images and annotations."""
