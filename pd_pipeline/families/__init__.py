"""Task families: one file each behind the protocol of `base`."""
