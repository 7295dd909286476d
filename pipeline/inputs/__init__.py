"""ImageNet in the shapes that people have it in, as images and annotations of one kind."""
