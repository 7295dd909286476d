"""Storage: files and folders, local or of Google Cloud Storage, that appear whole or not at all."""
