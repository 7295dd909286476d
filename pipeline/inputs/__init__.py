"""Reads ImageNet in every common layout, and users' own images, as one kind of images and
annotations."""
