"""The page about the network, for browsers: over TLS, for who has an administrator's certificate or knows the password.

Nothing that is asked here changes anything of the network.
"""
