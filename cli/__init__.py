"""The `godwit` command: one module per command, named as it is (`godwit volumes add`: `commands/volumes/add.py`).

    main                    the console script: the commands put together
      commands              one module per command
        new_server          making this machine a server
          network           whom a command asks: which network, its manager, its agents
            display         what people and programs are shown

Each imports only what is below it. `commands.run` starts the processes of a server. Names are bytes until they are shown.
"""
