"""What every Godwit process must agree on: messages, errors, configuration, volume layout and the RPC connection.

Nothing in here knows FUSE, SQL or the command line.
"""
