"""The command line: everything an operator of the gateway does from a shell."""
