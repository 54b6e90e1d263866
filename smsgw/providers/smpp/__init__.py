"""SMPP 3.4: our own client for operators that speak it."""
