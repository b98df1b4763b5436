"""Methods that adapt to a target task, one file per method, with the interface in `protocol`."""
