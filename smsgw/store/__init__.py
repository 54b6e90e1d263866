"""The store: sharded files, one writer each, one transaction a turn."""
