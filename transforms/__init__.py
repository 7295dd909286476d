"""The ImageNet-9 method as pure functions on arrays: no Beam, no I/O."""
