"""Reads ImageNet in any common layout, and users' images, as one kind of images and annotations."""
