"""Methods that adapt to a target task, one file each behind the protocol of `protocol`."""
