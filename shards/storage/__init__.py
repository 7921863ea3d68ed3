"""Files and folders, local or at a URL: whole or absent, read again where reading fails in passing, locked."""
