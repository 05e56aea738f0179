"""The `godwit` command: one module per noun.

Nouns ask the manager through `cli.network.ask`, say which lab or server they mean through `cli.network.target`, and show what came back
through `cli.display.render`. `cli.commands.run` starts the processes of a server. Names are bytes until they are shown.
"""
