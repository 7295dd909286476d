"""Storage: files and folders, local or in Google Cloud Storage, that appear whole or not at all."""
