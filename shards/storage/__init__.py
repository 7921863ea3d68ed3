"""Files and folders, local or at a URL: atomic writes, retried reads, locks."""
