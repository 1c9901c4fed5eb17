"""Where a server is, and the proxy on the way to it."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2


class Address(NamedTuple):
    """Where a server is: ``origin`` such as https://h:80, ``path`` without a trailing slash, ``host`` for messages."""

    origin: str
    path: str
    host: str


def address_of(url: str, setting: str = "PRO_ENDPOINT_URL") -> Address:
    """The parts of a server's address. Raises a ValueError that names the setting."""
    # The errors do not repeat the URL: it may hold a password.
    no_address = (
        f"{setting} is not an address: expected something like https://host:8080 or http://host/v1"
    )
    url = url.strip()
    if any(character.isspace() for character in url):
        raise ValueError(no_address)
    try:
        parts = urlsplit(url)
        httpx2.URL(url)
        (parts.hostname or "").encode("idna")  # fails for a name that cannot be looked up
    except (ValueError, httpx2.InvalidURL):
        raise ValueError(no_address) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(no_address)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"{setting} holds a user name, password or query: expected the bare address, "
            "with the secret in PRO_ENDPOINT_TOKEN"
        )
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{setting} has a port that is not a number from 0 to 65535") from None
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    host = f"{name}:{port}" if port else name
    return Address(f"{parts.scheme}://{host}", parts.path.rstrip("/"), host)


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(number, "ipv4_mapped", None)
    return (mapped or number).is_loopback or number.is_unspecified


def proxy_of(address: Address) -> str | None:
    """The proxy that the environment names for an address; None without one, and for this machine."""
    parts = urlsplit(address.origin)
    host = parts.hostname or ""
    proxies = getproxies()
    named = host if ":" in host else address.host  # with its port, except for IPv6
    if is_loopback(host) or proxy_bypass(named):
        return None
    if _within(host, proxies.get("no", "")):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _within(host: str, networks: str) -> bool:
    """Whether an IP address is in one of the networks of a no_proxy such as ``10.0.0.0/8,.intern``."""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    for one in networks.split(","):
        try:
            if number in ipaddress.ip_network(one.strip(), strict=False):
                return True
        except ValueError:
            continue  # a host name
    return False
