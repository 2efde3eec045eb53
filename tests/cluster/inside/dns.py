"""The cluster's DNS: names of services and of pods with a hostname behind them, asked of the apiserver each time.

    dns.py DIR   answers on 10.80.0.1:53 (UDP), which the service kube-dns leads to

A and AAAA for NAME.NAMESPACE.svc.cluster.local and HOST.NAME.NAMESPACE.svc.cluster.local; everything else does not exist,
because nothing is to leave.
"""

import http.client
import json
import pathlib
import re
import socket
import ssl
import struct
import sys

DOMAIN = ".svc.cluster.local"
A, AAAA, NO_ERROR, FAILED, NO_NAME = 1, 28, 0, 2, 3
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def main():
    apiserver = Apiserver(pathlib.Path(sys.argv[1]) / "pki")
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("10.80.0.1", 53))
    while True:
        query, peer = server.recvfrom(512)
        try:
            server.sendto(answer(apiserver, query), peer)
        except (ValueError, IndexError, struct.error) as error:
            print(f"not a query: {error}", flush=True)


def answer(apiserver, query):
    number, flags = struct.unpack_from("!HH", query)
    name, end = question(query)
    kind, = struct.unpack_from("!H", query, end)
    try:
        addresses = apiserver.addresses(name)
        code = NO_NAME if addresses is None else NO_ERROR
    except (OSError, http.client.HTTPException) as error:
        print(f"asking for {name}: {error}", flush=True)
        addresses, code = None, FAILED
    records = [address for address in addresses or [] if kind == A]
    # response, authoritative, recursion as asked for and available
    header = struct.pack("!HHHHHH", number, 0x8480 | (flags & 0x0100) | code, 1, len(records), 0, 0)
    body = b"".join(struct.pack("!HHHIH", 0xC00C, A, 1, 1, 4) + socket.inet_aton(address) for address in records)
    return header + query[12:end + 4] + body


def question(query):
    labels, at = [], 12
    while query[at]:
        length = query[at]
        labels.append(query[at + 1:at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels).lower(), at + 1


class Apiserver:
    def __init__(self, pki):
        self.context = ssl.create_default_context(cafile=pki / "ca.crt")
        self.context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self.connection = None

    def addresses(self, name):
        """What a name means; None when there is no such name."""
        if not name.endswith(DOMAIN):
            return None
        labels = name.removesuffix(DOMAIN).split(".")
        if len(labels) not in (2, 3) or not all(map(LABEL.fullmatch, labels)):
            return None
        *host, service, namespace = labels
        found = self.get(f"/api/v1/namespaces/{namespace}/services/{service}")
        if found is None:
            return None
        address = found["spec"].get("clusterIP", "None")
        if not host and address != "None":
            return [address]
        behind = self.get(f"/api/v1/namespaces/{namespace}/endpoints/{service}") or {}
        unready = found["spec"].get("publishNotReadyAddresses", False)
        entries = [
            entry
            for subset in behind.get("subsets") or []
            for entry in (subset.get("addresses") or []) + (unready and subset.get("notReadyAddresses") or [])
            if not host or entry.get("hostname") == host[0]
        ]
        return [entry["ip"] for entry in entries] or (None if host else [])

    def get(self, path):
        for attempt in range(2):
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPSConnection("10.80.0.1", 6443, context=self.context, timeout=3)
                self.connection.request("GET", path)
                response = self.connection.getresponse()
                body = response.read()
                break
            except (OSError, http.client.HTTPException):
                self.connection = None  # closed while idle, or a restart: once more, anew
                if attempt:
                    raise
        if response.status == 404:
            return None
        if response.status != 200:
            raise http.client.HTTPException(f"{path}: {response.status}")
        return json.loads(body)


main()
