"""The lab's network: a namespace for each host, one for the switch, and one interface of the machine itself.

    machine  gw<tag> ──┐
                       ├── bridge br0 in namespace godwit-<tag>-switch ── eth0 in godwit-<tag>-s1, -s2, …, -db

Hosts are the servers, whose numbers are their addresses', and the lab's database if it has one of its own.

The bridge has a namespace of its own, so that the machine's packet filter (Docker's, for example) has no say in what passes
between servers. All names contain the lab's tag: whatever was left behind is found by name alone.
"""

import ipaddress
import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from cluster.errors import Refused
from cluster.runtime import PUBLIC, make_runtime_directory
from lab.registry import REGISTRY, locked
from lab.tools import ToolFailed, tool

NAMESPACES = Path("/run/netns")  # where `ip netns add` binds them, so that they last without a process
BRIDGE = "br0"  # the same in every lab: it is seen in its own namespace only
MACHINE_HOST = 254  # last byte of the machine's address on the lab's network; the hosts' gateway
DATABASE_HOST = 253  # last byte of the database's; above all servers
SERVERS_MAX = 64  # their numbers are their addresses: 1 to 64 are far from the two above

FIRST_SECOND_OCTET = 64  # the labs' subnets are those of 10.64.0.0/10
SECOND_OCTETS = 64  # 64 to 127
SUBNETS = SECOND_OCTETS * 256
WIDE_ROUTE_BITS = 16  # a route at least as long as this is taken for somebody's real network

PORT_DISABLED = "0"  # BR_STATE_DISABLED and BR_STATE_FORWARDING of <linux/if_bridge.h>
PORT_FORWARDING = "3"


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lab's names in the kernel and its addresses; `subnet` is a /24."""

    tag: str  # eight hex digits of the root's path (`registry.tag_of`)
    subnet: str  # empty where only names are needed, as in `remove`

    @property
    def interface(self) -> str:
        """The machine's own interface (at most 15 characters)."""
        # IFNAMSIZ is 16 with the zero at the end: `gw` and eight digits fit.
        return f"gw{self.tag}"

    @property
    def switch(self) -> str:
        return f"godwit-{self.tag}-switch"

    def namespace(self, host: str) -> str:
        return f"godwit-{self.tag}-{host}"

    def address(self, number: int) -> str:
        """The address of server *number*; `MACHINE_HOST` and `DATABASE_HOST` are the machine and the database."""
        return str(IPv4Network(self.subnet)[number])


def subnet_number(index: int) -> IPv4Network:
    """The lab subnet *index* of `SUBNETS`: 10.64.0.0/24 … 10.127.255.0/24."""
    return IPv4Network(f"10.{FIRST_SECOND_OCTET + index // 256}.{index % 256}.0/24")


def choose_subnet(tag: str, taken: Iterable[IPv4Network]) -> IPv4Network:
    """A subnet that overlaps none of *taken*, the same for the same tag if it can be.

    A route wider than /16 (a VPN's 10.0.0.0/8) is only respected while something else is free: the lab's is more specific.
    Raises `Refused` when nothing is free.
    """
    routes = set(taken)
    # Begun at a place of its own, so that two labs rarely want the same subnet.
    start = int(tag, 16) % SUBNETS
    for avoided in (routes, {route for route in routes if route.prefixlen >= WIDE_ROUTE_BITS}):
        for step in range(SUBNETS):
            subnet = subnet_number((start + step) % SUBNETS)
            if not any(subnet.overlaps(route) for route in avoided):
                return subnet
    raise Refused("no free subnet for the lab between 10.64.0.0 and 10.127.255.255")


def taken_subnets() -> list[IPv4Network]:
    """Where the machine's IPv4 routes lead, without the default route."""
    # `table all` for the routes of VPNs, which have tables of their own. No route at all prints nothing, not `[]`.
    routes = json.loads(tool(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    found = []
    for route in routes:
        destination = route.get("dst", "default")
        # Broadcast and multicast routes come with each interface and say nothing new.
        if destination != "default" and route.get("type", "unicast") in ("unicast", "local", "blackhole", "unreachable"):
            network = ipaddress.ip_network(destination, strict=False)
            if isinstance(network, IPv4Network):
                found.append(network)
    return found


def build(tag: str, hosts: Mapping[str, int], *, route_out: bool) -> Network:
    """Makes all namespaces and links; *hosts* has the number of each in the subnet.

    `route_out`: the hosts reach all of the machine's addresses, not only the one on their network.
    """
    make_runtime_directory(REGISTRY, PUBLIC)
    # Across labs: between the look at the routes and our own route another lab could choose the same subnet.
    with locked(REGISTRY / "network.lock", "the networks of the labs"):
        network = Network(tag, str(choose_subnet(tag, taken_subnets())))
        # Names exist from the first command on, so what a crash leaves here is found by `remove`.
        tool(["ip", "netns", "add", network.switch])
        _build_switch(network)
        for host, number in hosts.items():
            plug_in(network, host, number, route_out=route_out)
    return network


def _build_switch(network: Network) -> None:
    name = network.interface
    # One `ip -batch` for each namespace, instead of a process for each line.
    lines = [
        # The peer is born in the switch's namespace: in the machine's, NetworkManager would see it and touch it.
        f"link add name {name} type veth peer name machine netns {network.switch}",
        f"addr add {network.address(MACHINE_HOST)}/24 dev {name}",
        f"link set dev {name} up",
    ]
    tool(["ip", "-batch", "-"], "\n".join(lines) + "\n")
    lines = [
        f"link add name {BRIDGE} type bridge",
        f"link set dev machine master {BRIDGE} up",
        f"link set dev {BRIDGE} up",
    ]
    tool(["ip", "-n", network.switch, "-batch", "-"], "\n".join(lines) + "\n")


def plug_in(network: Network, host: str, number: int, *, route_out: bool) -> None:
    """Makes a host's namespace and its link to the switch."""
    namespace = network.namespace(host)
    tool(["ip", "netns", "add", namespace])
    lines = [
        # Made from inside the switch: the server's name is that of its port there, which `cut` uses.
        f"link add name {host} type veth peer name eth0 netns {namespace}",
        f"link set dev {host} master {BRIDGE} up",
    ]
    tool(["ip", "-n", network.switch, "-batch", "-"], "\n".join(lines) + "\n")
    # `lo` is down in a new namespace, and PostgreSQL and programs expect it.
    lines = ["link set dev lo up", f"addr add {network.address(number)}/24 dev eth0", "link set dev eth0 up"]
    if route_out:
        # The lab turns on no forwarding: by itself this leads to the machine's own addresses only.
        lines.append(f"route add default via {network.address(MACHINE_HOST)}")
    tool(["ip", "-n", namespace, "-batch", "-"], "\n".join(lines) + "\n")


def unplug(network: Network, host: str) -> None:
    """Removes a host's namespace, and its link with it; harmless if there is none. Its processes must be gone."""
    if (NAMESPACES / network.namespace(host)).exists():
        # Deleting the namespace deletes `eth0`, and with it the peer at the switch.
        tool(["ip", "netns", "delete", network.namespace(host)])


def remove(tag: str) -> None:
    """Removes whatever there is of the lab's network; harmless if there is nothing. Its processes must be gone."""
    # By name alone, for labs whose `lab.json` is lost.
    network = Network(tag, "")
    if Path("/sys/class/net", network.interface).exists():
        # The machine's end: the only one that no namespace takes with it.
        tool(["ip", "link", "delete", "dev", network.interface])
    for namespace in namespaces(tag):
        tool(["ip", "netns", "delete", namespace])


def namespaces(tag: str) -> list[str]:
    """The lab's namespaces that exist."""
    return sorted(path.name for path in NAMESPACES.glob(f"godwit-{tag}-*"))


def processes_in(namespace: str) -> list[int]:
    """The process ids of whatever runs in a namespace."""
    try:
        return [int(pid) for pid in tool(["ip", "netns", "pids", namespace]).split()]
    except ToolFailed:
        # Somebody may have deleted the namespace in between: then nothing runs in it.
        if (NAMESPACES / namespace).exists():
            raise
        return []


def cut(network: Network, server: str) -> None:
    """The switch drops every packet from and to the server, and tells nobody."""
    # Not `ip link set down`, which the server would see as a lost carrier, and answer with errors at once. A cable that is cut
    # far away shows nothing.
    tool(["bridge", "-n", network.switch, "link", "set", "dev", server, "state", PORT_DISABLED])


def mend(network: Network, server: str) -> None:
    """Undoes `cut`; harmless without one."""
    tool(["bridge", "-n", network.switch, "link", "set", "dev", server, "state", PORT_FORWARDING])


def has_switch(network: Network) -> bool:
    return (NAMESPACES / network.switch).exists()


def is_cut(network: Network, server: str) -> bool:
    (port,) = json.loads(tool(["bridge", "-n", network.switch, "-json", "link", "show", "dev", server]))
    # A port that was just plugged in is forwarding at once: the bridge has no spanning tree.
    return bool(port["state"] != "forwarding")


def enter(namespace: str, argv: Iterable[str]) -> list[str]:
    """The command line that runs *argv* on a server's network, and in the machine's mount namespace."""
    # Not `ip netns exec`, which gives the program a mount namespace of its own: FUSE mounts made there would be seen by nobody
    # else.
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--", *argv]
