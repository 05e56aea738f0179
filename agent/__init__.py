"""The background agent: owns the volumes of its server, works its queue, and serves object bytes to mounts and agents.

    main ── volumes, objects            what is on disk
         ├─ dataserver ── pulls         what others ask of this server
         ├─ taskqueue ── copying, reports, peers, publishing
         └─ workers: settler, strays, trash, registration

Knows neither FUSE nor SQL: the catalog is reached through `cluster.rpc.session` only.
"""
