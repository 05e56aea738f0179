"""The background agent: owns the volumes of its server, works its queue, and serves object bytes to mounts and agents.

    main                    the process: what it consists of, in which order it starts and stops
      serving | workers     what others ask of this server | loops beside the queue
        copying             the queue, and both sides of a copy
          checking          the catalog against the disks
            objects         files on the disks
              volumes       the disks
                loop, keyed_locks, batches

Each imports only what is below it. Knows neither FUSE nor SQL: the catalog is reached through `cluster.rpc.session` only.
"""
