"""The `godwit` command: one module per noun.

Nouns ask the manager through `cli.ask`, say which lab or server they mean through `cli.target`, and show what came back
through `cli.render`. `cli.run` starts the processes of a server. Names are bytes until they are shown.
"""
