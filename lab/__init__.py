"""A whole storage network on one machine: servers as network namespaces, their processes, and faults on demand.

`lab.lab.Lab` is the interface; `godwit lab`, the tests and the benchmarks use it.
"""
